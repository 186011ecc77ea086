"""All runs of a folder at a glance, without reading any of them whole."""

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cluster.charts import number
from cluster.dashboards.gantt import seconds
from cluster.pages.library import Library, Run
from cluster.pages.view import GOES_ON_S, config_of

NUM_POINTS = 40
"""Of a small curve, read from as many places of metrics.jsonl."""
READ_BYTES = 64 * 1024
"""Around a place: more than a line has."""
ORDER = ("running", "failed", "stopped", "finished")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A run in the list."""

    slug: str
    name: str
    state: str
    method: str
    step: int
    num_steps: int | None
    reward: str
    """Which reward: `gold`, `total`, or what the method has in place of one."""
    value: str
    curve: Markup
    age: str
    """Since it was last written to."""
    written: float


class RunList:
    """The list of runs; what was read of one is kept until its folder changes."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self._kept: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {}

    def lines(self) -> list[Line]:
        """Running ones first, then by when they were last written to, the newest first."""
        runs = self.library.runs()
        lines = [self._line(run) for run in runs]
        slugs = {run.slug for run in runs}
        self._kept = {slug: kept for slug, kept in self._kept.items() if slug in slugs}
        return sorted(lines, key=lambda line: (line.state != "running", -line.written))

    def _line(self, run: Run) -> Line:
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
            signature = stat.st_mtime_ns, stat.st_size
        except OSError:
            signature = 0, 0
        kept = self._kept.get(run.slug)
        if kept is None or kept[0] != signature:
            kept = self._kept[run.slug] = signature, _read(run.path)
        return kept[1]


def _read(path: Path) -> dict[str, Any]:
    config = config_of(path)
    algorithm = config.get("algorithm")
    algorithm = algorithm if isinstance(algorithm, dict) else {}
    rows = sampled_rows(path / "metrics.jsonl")
    key, label = _key(config, rows)
    values = [float(row[key]) for row in rows if isinstance(row.get(key), int | float)]
    steps = algorithm.get("num_steps")
    return {
        "method": str(algorithm.get("name") or "run"),
        "step": int(rows[-1]["step"]) if rows else 0,
        "num_steps": steps if isinstance(steps, int) else None,
        "reward": label,
        "value": number(values[-1]) if values else "",
        "curve": sparkline(values),
    }


def _key(config: dict[str, Any], rows: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """The figure that says most of a run: the true reward, else what it learns from."""
    feedback = config.get("feedback")
    rewards = feedback.get("rewards") if isinstance(feedback, dict) else None
    gold = [
        name
        for name, reward in (rewards or {"gold": {"kind": "gold"}}).items()
        if isinstance(reward, dict) and reward.get("kind") == "gold"
    ]
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
