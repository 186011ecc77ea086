"""The figures of one run over its steps and over time, read from its folder as they come.

Works on dead and on running runs and writes nothing. `refresh` reads only what was appended. What
processes tell over days is kept coarser the longer ago it was, so that a reader does not grow.
"""

import sys
from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.dashboards.panel import Curve
from cluster.metrics.labels import labels_of
from cluster.metrics.table import ACTOR, find
from cluster.metrics.telemetry import TelemetryTail
from cluster.metrics.telemetry import Told as TelemetryLine
from cluster.tail import JsonlTail, MetricsTail

RATE_S = 10.0
"""A counter's rate is taken over at least so long."""
SILENT_S = 30.0
"""A process that told nothing for so long was not there: its phase ended when it last told."""
NOT_DRAWN = "phase_seconds/"
"""Counters that say what `RunHistory.phases` says."""
MOST_POINTS = 20_000
"""Of one live figure are kept at most; where it has more, every second one, every fourth, ..."""
MOST_CHANGES = 50_000
"""Of a role's phases are kept, the newest."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One drawn line: `y[i]` at step or unix second `x[i]`."""

    name: str
    labels: Mapping[str, str]
    x: list[float]
    y: list[float]
    low: list[float]
    """Empty, or the lower edge of a shaded range; `high` likewise."""
    high: list[float]


@dataclass(frozen=True, kw_only=True)
class Span:
    """A process in one phase."""

    role: str
    phase: str
    start: float
    """Unix seconds."""
    end: float


Points = tuple[list[float], list[float]]


class LivePoints:
    """A live figure over time, evenly thinned so that it does not grow; the newest point is there.

    >>> points = LivePoints(); points.add(1764486000.0, 431.2); list(points.ys)
    [431.2]
    """

    def __init__(self) -> None:
        self.xs, self.ys = array("d"), array("d")
        self._stride = 1
        """Of so many points one is kept."""
        self._number = 0
        """Of points so far."""

    def add(self, x: float, y: float) -> None:
        """A newer point."""
        if self._number and (self._number - 1) % self._stride:
            self.xs[-1], self.ys[-1] = x, y  # the one before was kept as the newest alone
        else:
            self.xs.append(x)
            self.ys.append(y)
        self._number += 1
        if len(self.xs) > MOST_POINTS:
            del self.xs[1::2], self.ys[1::2]
            self._stride *= 2


class RunHistory:
    """What panels draw of one run folder.

    >>> # history = RunHistory(run_dir, config); history.refresh(); history.lines(curve)
    """

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        """`config` is the run's configuration as plain values."""
        self.run_dir, self.config = run_dir, config
        self.rows: list[dict[str, Any]] = []
        """Of metrics.jsonl, by step."""
        self.events: list[dict[str, Any]] = []
        self.phases: dict[str, list[tuple[float, str]]] = defaultdict(list)
        """Role -> (unix second, phase from then on)."""
        self.phases_from = 0.0
        """Unix second before which phases of some role were forgotten."""
        self.last_told: dict[str, float] = {}
        """Role -> unix second of its last line."""
        self.silences: dict[str, list[tuple[float, float]]] = defaultdict(list)
        """Role -> (unix second of its last line before a silence, of the first one after it)."""
        self._metrics = MetricsTail(run_dir)
        self._events = JsonlTail(run_dir / "events.jsonl")
        self._telemetry = TelemetryTail(run_dir)
        self._live: dict[tuple[str, str], LivePoints] = defaultdict(LivePoints)
        """(key, role) -> points."""
        self._keys: set[str] = set()
        self.revision = {"step": 0, "event": 0, "live": 0}
        """By source of figures: another number whenever there is something new to draw."""

    # ---- reading ---------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read what was appended since the last time."""
        while rows := self._metrics.read():
            self.revision["step"] += 1
            for row in rows:
                self._add_row(row)
        events = self._events.read()
        self.events += events
        self.revision["event"] += bool(events)
        for role, lines in self._telemetry.read().items():
            self.revision["live"] += 1
            self._add_told(role, lines)

    def _add_told(self, role: str, lines: Sequence[TelemetryLine]) -> None:
        changes = self.phases[role]
        last = self.last_told.get(role, lines[0].time)
        for now, phase, values in lines:
            if now - last > SILENT_S:
                self.silences[role].append((last, now))
            last = now
            if phase is not None:
                changes.append((now, sys.intern(phase)))
                continue
            for key, value in values.items():
                if not key.startswith(NOT_DRAWN):
                    self._live[key, role].add(now, value)
        self.last_told[role] = last
        if len(changes) > MOST_CHANGES:
            del changes[: -MOST_CHANGES // 2]
            self.phases_from = max(self.phases_from, changes[0][0])

    def _add_row(self, row: dict[str, Any]) -> None:
        """A run that was resumed repeats steps: the last row of a step counts."""
        step = row["step"]
        if self.rows and self.rows[-1]["step"] >= step:
            at = bisect_right([other["step"] for other in self.rows], step - 1)
            del self.rows[at:]
        # Each line brings its keys anew; thousands of rows share one set.
        self.rows.append({sys.intern(key): value for key, value in row.items()})
        self._keys |= row.keys()

    # ---- asking ----------------------------------------------------------------------------

    @property
    def num_torn(self) -> int:
        """Lines of metrics.jsonl that could not be read."""
        return self._metrics.num_torn

    @property
    def newest(self) -> float | None:
        """Unix second of the last line of anybody; None where nobody told anything."""
        return max(self.last_told.values(), default=None)

    @property
    def step_keys(self) -> set[str]:
        """Of all figures in metrics.jsonl."""
        return self._keys

    def keys_of(self, curve: Curve) -> set[str]:
        """Keys of metrics.jsonl that a curve draws, those of its shaded range included."""
        edges = {curve.low, curve.high} & self._keys
        return edges | {key for key, _ in self._matching(curve, self._keys)}

    def line_of_key(self, key: str) -> Line:
        """One figure of the steps, whether or not the table knows it."""
        rows = [row for row in self.rows if _is_number(row.get(key))]
        x, y = [float(row["step"]) for row in rows], [float(row[key]) for row in rows]
        return Line(name=key, labels={}, x=x, y=y, low=[], high=[])

    def lines(self, curve: Curve) -> list[Line]:
        """The lines of a curve, sorted by name; empty where the run has no such figure."""
        source = {"step": self._step_lines, "live": self._live_lines, "event": self._event_lines}
        return sorted(source[curve.metric.source](curve), key=lambda line: _order(line.name))

    def _matching(self, curve: Curve, keys: set[str]) -> Iterator[tuple[str, dict[str, str]]]:
        for key in keys:
            found = find(key)
            if found is None or found[0] is not curve.metric:
                continue
            labels = labels_of(key, self.config)
            if all(labels.get(name) == value for name, value in curve.where):
                yield key, labels

    def _step_lines(self, curve: Curve) -> Iterator[Line]:
        for key, labels in self._matching(curve, self._keys):
            rows = [row for row in self.rows if _is_number(row.get(key))]
            line = self.line_of_key(key)
            low, high = ([_value(row, edge) for row in rows] for edge in (curve.low, curve.high))
            is_ranged = bool(curve.low) and None not in low and None not in high
            yield replace(
                line,
                name=curve.label.format(**labels),
                labels=labels,
                low=[float(v) for v in low if v is not None] if is_ranged else [],
                high=[float(v) for v in high if v is not None] if is_ranged else [],
            )

    def at_times(self, curve: Curve) -> list[Line]:
        """The lines of a curve over unix seconds, also of a figure of steps."""
        if curve.metric.source != "step":
            return self.lines(curve)
        times = {row["step"]: row.get("unix_time") for row in self.rows}
        lines = []
        for line in self.lines(curve):
            kept = [(t, y) for x, y in zip(line.x, line.y, strict=True) if (t := times[int(x)])]
            lines.append(
                replace(line, x=[t for t, _ in kept], y=[y for _, y in kept], low=[], high=[])
            )
        return lines

    def _live_lines(self, curve: Curve) -> Iterator[Line]:
        keys = {key for key, _ in self._live}
        for key, labels in self._matching(curve, keys):
            for (other, role), points in self._live.items():
                if other != key:
                    continue
                xs, ys = points.xs, points.ys
                own = labels | ({ACTOR: role} if curve.metric.per_actor else {})
                x, y = rate(xs, ys) if curve.is_rate else (list(xs), list(ys))
                name = curve.label.format(**own)
                yield Line(name=name, labels=own, x=x, y=y, low=[], high=[])

    def _event_lines(self, curve: Curve) -> Iterator[Line]:
        times: dict[str, list[float]] = defaultdict(list)
        for event in self.events:
            times[str(event.get("kind"))].append(float(event.get("time", 0.0)))
        for kind, at in times.items():
            labels = {"kind": kind}
            y = [float(count) for count in range(1, len(at) + 1)]
            yield Line(name=curve.label.format(**labels), labels=labels, x=at, y=y, low=[], high=[])

    def spans(self, since: float = 0.0) -> list[Span]:
        """What each process did from unix second `since` on; the last phase up to its last line."""
        spans = []
        for role, changes in sorted(self.phases.items()):
            first = max(0, bisect_right([start for start, _ in changes], since) - 1)
            for at in range(first, len(changes)):
                start, phase = changes[at]
                end = changes[at + 1][0] if at + 1 < len(changes) else self.last_told[role]
                end = self._end_of(role, start, end)
                if end >= since:
                    spans.append(Span(role=role, phase=phase, start=max(start, since), end=end))
        return spans

    def _end_of(self, role: str, start: float, end: float) -> float:
        """When a phase ended: before its successor began, if the process fell silent in it."""
        quiet = self.silences[role]
        at = bisect_left(quiet, (start, start))
        return min(end, quiet[at][0]) if at < len(quiet) else end

    @property
    def began(self) -> float | None:
        """Unix second of the first line of anybody; None where nobody told anything."""
        firsts = [points.xs[0] for points in self._live.values()]
        firsts += [changes[0][0] for changes in self.phases.values() if changes]
        firsts += [float(event["time"]) for event in self.events[:1] if "time" in event]
        return min(firsts, default=None)


def rate(xs: Sequence[float], ys: Sequence[float]) -> Points:
    """Growth per second of a counter; where it falls, its process was started anew from 0."""
    x, y = [], []
    at = 0
    grown = 0.0
    for i in range(1, len(xs)):
        grown += ys[i] - ys[i - 1] if ys[i] >= ys[i - 1] else ys[i]
        if xs[i] - xs[at] >= RATE_S:
            x.append(xs[i])
            y.append(grown / (xs[i] - xs[at]))
            at, grown = i, 0.0
    return x, y


def _order(name: str) -> tuple[int, float, str]:
    """Numbers by size, words by letters, `engine-2` before `engine-10`."""
    if name.isdigit():
        return 0, float(name), ""
    head, _, tail = name.rpartition("-")
    return (1, float(tail), head) if tail.isdigit() else (1, 0.0, name)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _value(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    return value if _is_number(value) else None
