"""What the pages know of one run, kept up with its folder, with the charts that were drawn."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cluster.dashboards.drawing import WHOLE, Figure, Window, figure
from cluster.dashboards.panel import Panel
from cluster.metrics.history import RunHistory
from cluster.pages.run_files import TextFile, parse_config
from cluster.pages.sharing import FRESH_S, LIMIT_S, Busy
from configs.redaction import redact_text

if TYPE_CHECKING:
    from cluster.rollouts.browser import RolloutBrowser
    from cluster.rollouts.rows import Row
    from cluster.run_record import RunRecord

GOES_ON_S = 15.0
"""A run without its driver on record, such as a stage of a demo, goes on while it is written to."""
MOST_FIGURES = 200
FIRST_S = 0.2
"""Seconds of indexing samples before the first answer; the rest is indexed behind it."""


class RunView:
    """One run.

    >>> # with view.opened(): view.state, view.figure(panel)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.history = RunHistory(path, {})
        self.state = "stopped"
        """`running`, `finished`, `failed` or `stopped`."""
        self.newest_replies: tuple[int, list[Row]] = (-1, [])
        """Step, and some of its replies."""
        self._turn, self._samples_turn = threading.Lock(), threading.Lock()
        self._samples: RolloutBrowser | None = None
        self._looked = -FRESH_S
        self._config = TextFile(path / "config.yaml")
        self._summary = TextFile(path / "summary.json")
        self._config_notes: list[str] = []
        self._summary_values: dict[str, Any] = {}
        self._drawn: dict[tuple[Panel, Window], tuple[tuple[int, ...], Figure | None]] = {}

    @contextmanager
    def opened(self) -> Iterator["RunView"]:
        """One thread at a time looks at a run, and sees it at most a second old; raises Busy."""
        if not self._turn.acquire(timeout=LIMIT_S):
            raise Busy
        try:
            if time.monotonic() - self._looked >= FRESH_S:
                self._refresh()
                self._looked = time.monotonic()
            yield self
        finally:
            self._turn.release()

    def _refresh(self) -> None:
        from cluster.failure import bundles
        from cluster.run_state import last_written, state_of

        if self._config.read():
            self.history.config, self._config_notes = parse_config(self._config.text)
            self._drawn.clear()
        if self._summary.read():
            self._summary_values = _json_object(self._summary.text)
        self.history.refresh()
        self.state = state_of(self.path, bundles(self.path))
        if self.state == "stopped" and time.time() - last_written(self.path) < GOES_ON_S:
            self.state = "running"

    # ---- what is known, inside `opened` ----------------------------------------------------

    @property
    def config(self) -> dict[str, Any]:
        """Of config.yaml, secrets taken out; empty where there is none."""
        return dict(self.history.config)

    @property
    def config_text(self) -> str:
        """config.yaml as YAML; where it is none, as it stands."""
        if not self.config:
            return redact_text(self._config.text)
        return yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)

    @property
    def record(self) -> "RunRecord":
        """The same as a report reads, without reading it again."""
        from cluster.run_record import RunRecord

        return RunRecord(
            path=self.path,
            config=self.config,
            rows=self.history.rows,
            summary=self._summary_values,
            notes=tuple(self._notes()),
        )

    def _notes(self) -> Iterator[str]:
        yield from filter(None, [self._config.problem, *self._config_notes])
        if torn := self.history.num_torn:
            lines_are = "line is" if torn == 1 else "lines are"
            yield f"metrics.jsonl: {torn} {lines_are} torn and left out."
        if self._summary.problem:
            yield self._summary.problem
        if self._summary.text and not self._summary_values:
            yield "summary.json: torn and left out."

    @property
    def is_running(self) -> bool:
        """Whether it goes on."""
        return self.state == "running"

    @property
    def step(self) -> int:
        """The last learner step; 0 before the first."""
        return int(self.history.rows[-1]["step"]) if self.history.rows else 0

    @property
    def now(self) -> float:
        """Unix second up to which it is drawn: this moment, or that of its end."""
        return time.time() if self.is_running else (self.history.newest or time.time())

    def figure(self, panel: Panel, window: Window = WHOLE) -> Figure | None:
        """The panel as SVG, drawn again only where there is something new."""
        revision = self.history.revision
        sources = ("step",) if panel.is_by_step else tuple(revision)
        signature = tuple(revision[source] for source in sources)
        kept = self._drawn.get((panel, window))
        if kept is not None and kept[0] == signature:
            return kept[1]
        drawn = figure(self.history, panel, window)
        if len(self._drawn) >= MOST_FIGURES:
            self._drawn.clear()
        self._drawn[panel, window] = (signature, drawn)
        return drawn

    @property
    def samples(self) -> "RolloutBrowser":
        """The browser of its samples, which keeps up with the run from now on; from any thread."""
        from cluster.rollouts.browser import RolloutBrowser

        with self._samples_turn:
            if self._samples is None:
                made = RolloutBrowser(self.path)
                made.refresh(FIRST_S)
                made.start()
                self._samples = made
            return self._samples

    def close(self) -> None:
        """Give back what the samples take: their index, and a thread."""
        with self._samples_turn:
            if self._samples is not None:
                threading.Thread(target=self._samples.close, daemon=True).start()
                self._samples = None


def _json_object(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text)) if text else {}
    except (ValueError, TypeError):
        return {}
