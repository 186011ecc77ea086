"""All runs of a folder at a glance, without reading any of them whole."""

import json
import logging
import math
import os
import threading
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cluster.charts import number
from cluster.dashboards.gantt import seconds
from cluster.pages.library import Library, Run, identity_of
from cluster.pages.run_files import TextFile, parse_config
from cluster.pages.view import GOES_ON_S

logger = logging.getLogger(__name__)

NUM_POINTS = 40
"""Of a small curve, read from as many places of metrics.jsonl."""
READ_BYTES = 64 * 1024
"""Around a place: more than a line has."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A run in the list."""

    slug: str
    name: str
    state: str
    """Of a run that cannot be told of: `unreadable`."""
    method: str = ""
    step: int = 0
    num_steps: int | None = None
    reward: str = ""
    """Which reward: `gold`, `total`, or what the method has in place of one."""
    value: str = ""
    curve: str = ""
    age: str = ""
    """Since it was last written to."""
    written: float = 0.0


class RunList:
    """The list of runs; what was read of one is kept until its folder changes."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self._kept: dict[str, tuple[Hashable, dict[str, Any]]] = {}
        self._unreadable: dict[str, str] = {}
        """Slug -> why, of which the log was told."""
        self._turn = threading.Lock()

    def lines(self) -> list[Line]:
        """Running ones first, then by when they were last written to, the newest first."""
        runs = self.library.runs()
        slugs = {run.slug for run in runs}
        with self._turn:
            lines = [self._line(run) for run in runs]
            self._kept = {slug: kept for slug, kept in self._kept.items() if slug in slugs}
            self._unreadable = {s: why for s, why in self._unreadable.items() if s in slugs}
        return sorted(lines, key=lambda line: (line.state != "running", -line.written))

    def _line(self, run: Run) -> Line:
        """One run that cannot be read must not take the others with it."""
        try:
            line = self._read_line(run)
            self._unreadable.pop(run.slug, None)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            if self._unreadable.get(run.slug) != why:
                self._unreadable[run.slug] = why
                logger.warning("%s cannot be read: %s", run.path, why, exc_info=True)
            return Line(slug=run.slug, name=run.name, state="unreadable")
        return line

    def _read_line(self, run: Run) -> Line:
        from cluster.failure import bundles
        from cluster.run_state import last_written, state_of

        written = last_written(run.path)
        state = state_of(run.path, bundles(run.path))
        age = max(0.0, time.time() - written)
        if state == "stopped" and age < GOES_ON_S:
            state = "running"
        facts = self._facts(run)
        return Line(
            slug=run.slug, name=run.name, state=state, age=seconds(age), written=written, **facts
        )

    def _facts(self, run: Run) -> dict[str, Any]:
        file = run.path / "metrics.jsonl"
        try:
            stat = file.stat()
            signature = identity_of(run.path), stat.st_mtime_ns, stat.st_size
        except OSError:
            signature = identity_of(run.path), 0, 0
        kept = self._kept.get(run.slug)
        if kept is None or kept[0] != signature:
            kept = self._kept[run.slug] = signature, _read(run.path)
        return kept[1]


def _read(path: Path) -> dict[str, Any]:
    """Raises OSError where config.yaml cannot be read."""
    file = TextFile(path / "config.yaml")
    file.read()
    if file.problem:
        raise OSError(file.problem)
    config, _ = parse_config(file.text)
    algorithm = config.get("algorithm") or {}
    rows = sampled_rows(path / "metrics.jsonl")
    key, label = _key(config, rows)
    values = [float(row[key]) for row in rows if isinstance(row.get(key), int | float)]
    return {
        "method": str(algorithm.get("name") or "run"),
        "step": int(rows[-1]["step"]) if rows else 0,
        "num_steps": algorithm.get("num_steps"),
        "reward": label,
        "value": number(values[-1]) if values else "",
        "curve": sparkline(values),
    }


def _key(config: dict[str, Any], rows: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """The figure that says most of a run: the true reward, else what it learns from."""
    rewards = (config.get("feedback") or {}).get("rewards") or {"gold": {"kind": "gold"}}
    gold = [name for name, reward in rewards.items() if (reward or {}).get("kind") == "gold"]
    wanted = [(f"reward/{name}/mean", name) for name in gold] + [("reward/total/mean", "total")]
    wanted += [("validation/accuracy", "accuracy"), ("validation/loss", "validation loss")]
    wanted += [("loss/nll", "loss"), ("loss/preference", "loss")]
    keys = {key for row in rows for key in row}
    return next(((key, label) for key, label in wanted if key in keys), ("", ""))


def sampled_rows(file: Path, count: int = NUM_POINTS) -> list[dict[str, Any]]:
    """The last whole row of a file of steps, and some before it, evenly spread; by step.

    Reads a few lines, however long the file is.
    """
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            if size <= count * 4096:
                lines = opened.read().splitlines()
            else:
                lines = [_line_at(opened, size * i // count) for i in range(count)]
                opened.seek(max(0, size - READ_BYTES))
                lines += opened.read().splitlines()[1:]
    except OSError:
        return []
    rows = {row["step"]: row for line in lines if (row := _row(line)) is not None}
    return [rows[step] for step in sorted(rows)]


def _line_at(file: Any, place: int) -> bytes:
    file.seek(place)
    if place:
        file.readline(READ_BYTES)  # the rest of the line that the place lies in
    return file.readline(READ_BYTES)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = dict(json.loads(line))
    except (ValueError, TypeError):  # torn
        return None
    return row if isinstance(row.get("step"), int) else None


def sparkline(values: Sequence[float]) -> Markup:
    """A curve as small as a word; empty for less than two points."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return Markup("")
    low, high = min(finite), max(finite)
    scale = (high - low) or 1.0
    points = " ".join(
        f"{1 + 98 * i / (len(finite) - 1):.1f},{19 - 18 * (value - low) / scale:.1f}"
        for i, value in enumerate(finite)
    )
    return Markup(
        '<svg class="spark" viewBox="0 0 100 20" width="100" height="20" aria-hidden="true">'
        f'<polyline class="line c0" points="{points}"/></svg>'
    )
