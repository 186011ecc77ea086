"""Who did what when: a row of phases for each process of a run, as SVG.

Times are given in percent of the width, so that the drawing fills a phone and a wide screen alike
and its words keep their size.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from markupsafe import Markup

from cluster.charts import number, ticks
from cluster.events import tone
from cluster.metrics.history import RunHistory, Span
from cluster.metrics.table import IDLE

COLORS = {
    "sample": 0, "score": 1, "update": 2, "sync": 3, "checkpoint": 4, "answer": 7, "load": 6,
}  # fmt: skip
OTHER = 5
"""Colour of phases that have none of their own."""
BAR, ROW, AXIS = 16, 40, 26
"""Heights, px: a bar, a row with its name, the axis."""
NUM_BINS = 240
MOST_EVENTS = 200
MOST_SPANS = 1500
"""More in one drawing than this are drawn as shares of bins instead."""


@dataclass(frozen=True, kw_only=True)
class Gantt:
    """A drawn timeline and what stands beside it."""

    svg: Markup
    legend: tuple[tuple[str, str], ...]
    """(style, phase)."""
    shares: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...]
    """(process, (style, phase, share of its time), ...): the same in numbers."""
    is_binned: bool


def gantt(
    history: RunHistory, start: float, end: float, *, origin: float | None = None
) -> Gantt | None:
    """Phases from unix second `start` to `end`; None where nobody told any.

    The axis counts from `origin`, by default `start`, back or forward.
    """
    spans = [span for span in history.spans(start) if span.start < end]
    if not spans or end <= start:
        return None
    rows: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        rows[span.role].append(span)
    scale = _Scale(start, end)
    is_binned = len(spans) > MOST_SPANS
    marks = _axis(scale, len(rows), start if origin is None else origin)
    marks += _events(scale, history.events, len(rows) * ROW)
    for index, (role, own) in enumerate(rows.items()):
        top = index * ROW
        marks.append(f'<text class="role" x="0" y="{top + 15}">{escape(role)}</text>')
        draw = _bins if is_binned else _bars
        marks += draw(scale, own, top + 20)
    return Gantt(
        svg=_svg(marks, len(rows) * ROW + AXIS, list(rows)),
        legend=_legend(spans),
        shares=tuple((role, _shares(own, scale)) for role, own in rows.items()),
        is_binned=is_binned,
    )


def whole_gantt(history: RunHistory) -> Gantt | None:
    """The same of the whole run."""
    if history.began is None or history.newest is None:
        return None
    return gantt(history, max(history.began, history.phases_from), history.newest)


def style(phase: str) -> str:
    """Class of the style sheet: idle phases look empty, others have a colour."""
    return "idle" if phase in IDLE else f"c{COLORS.get(phase, OTHER)}"


@dataclass(frozen=True)
class _Scale:
    start: float
    end: float

    def holds(self, moment: object) -> bool:
        return isinstance(moment, int | float) and self.start <= moment <= self.end

    def percent(self, moment: float) -> float:
        inside = min(max(moment, self.start), self.end)
        return 100 * (inside - self.start) / (self.end - self.start)


def _bars(scale: _Scale, spans: Sequence[Span], top: float) -> list[str]:
    marks = []
    for span in spans:
        x, until = scale.percent(span.start), scale.percent(span.end)
        told = (
            f"{span.role}: {span.phase}\n{seconds(span.end - span.start)} from {clock(span.start)}"
        )
        marks.append(_bar(x, max(until - x, 0.05), top, BAR, style(span.phase), told))
    return marks


def _bins(scale: _Scale, spans: Sequence[Span], top: float) -> list[str]:
    """Each bin as a column of the shares that phases had in it, idle ones left empty."""
    width = (scale.end - scale.start) / NUM_BINS
    found: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for span in spans:
        _fill(found, span, scale.start, width)
    marks = []
    for index, phases in sorted(found.items()):
        begin = scale.start + index * width
        words = [f"{phase}: {100 * s / width:.0f}%" for phase, s in _sorted(phases)]
        told = "\n".join([f"{spans[0].role}, {seconds(width)} from {clock(begin)}", *words])
        marks.append(_column(100 * index / NUM_BINS, phases, width, top, told))
    return marks


def _fill(found: dict[int, dict[str, float]], span: Span, start: float, width: float) -> None:
    """Add the seconds of a span to the bins that it lies in."""
    first = max(0, int((span.start - start) / width))
    last = min(NUM_BINS - 1, int((span.end - start) / width))
    for index in range(first, last + 1):
        begin = start + index * width
        inside = min(span.end, begin + width) - max(span.start, begin)
        if inside > 0:
            found[index][span.phase] += inside


def _column(x: float, phases: Mapping[str, float], width: float, top: float, told: str) -> str:
    wide = 100 / NUM_BINS
    marks, base = [], top + BAR
    for phase, spent in _sorted(phases):
        if phase in IDLE:
            continue
        height = BAR * min(1.0, spent / width)
        base -= height
        marks.append(
            f'<rect class="{style(phase)}" x="{x:.3f}%" y="{base:.2f}" width="{wide + 0.02:.3f}%" '
            f'height="{height:.2f}"/>'
        )
    back = f'<rect class="idle" x="{x:.3f}%" y="{top}" width="{wide + 0.02:.3f}%" height="{BAR}"/>'
    return f'<g class="span"><title>{escape(told)}</title>{back}{"".join(marks)}</g>'


def _bar(x: float, width: float, top: float, height: float, css: str, told: str) -> str:
    return (
        f'<rect class="span {css}" x="{x:.3f}%" y="{top}" width="{width:.3f}%" '
        f'height="{height}"><title>{escape(told)}</title></rect>'
    )


def _sorted(phases: Mapping[str, float]) -> list[tuple[str, float]]:
    """Phases in the order of their colours, idle ones last, so that columns look alike."""
    order = list(COLORS)
    return sorted(
        phases.items(),
        key=lambda item: (item[0] in IDLE, order.index(item[0]) if item[0] in order else 99),
    )


def _axis(scale: _Scale, num_rows: int, origin: float) -> list[str]:
    length = scale.end - scale.start
    unit, name = (1.0, "s") if length < 300 else (60.0, "min") if length < 10800 else (3600.0, "h")
    bottom = num_rows * ROW
    marks = []
    for value in ticks((scale.start - origin) / unit, (scale.end - origin) / unit, 6):
        x = scale.percent(origin + value * unit)
        if not 3 < x < 97:
            continue
        marks.append(f'<line class="grid" x1="{x:.2f}%" x2="{x:.2f}%" y1="0" y2="{bottom}"/>')
        label = f"{number(round(value, 6))} {name}"
        marks.append(f'<text class="x" x="{x:.2f}%" y="{bottom + 18}">{label}</text>')
    return marks


def _events(scale: _Scale, events: Iterable[Mapping[str, Any]], bottom: float) -> list[str]:
    """A thin line through all rows where something happened; what went wrong stands out."""
    marks = []
    inside = [event for event in events if scale.holds(event.get("time"))]
    for event in inside[-MOST_EVENTS:]:
        moment, kind = event["time"], str(event.get("kind", ""))
        x = scale.percent(moment)
        told = f"{clock(moment)} {kind}"
        marks.append(
            f'<g class="event {tone(kind)}"><title>{escape(told)}</title>'
            f'<rect x="{max(0.0, x - 0.3):.3f}%" y="0" width="0.6%" height="{bottom}"/>'
            f'<line x1="{x:.3f}%" x2="{x:.3f}%" y1="0" y2="{bottom}"/></g>'
        )
    return marks


def _legend(spans: Iterable[Span]) -> tuple[tuple[str, str], ...]:
    found = dict.fromkeys(span.phase for span in spans)
    return tuple((style(phase), phase) for phase, _ in _sorted(dict.fromkeys(found, 0.0)))


def _shares(spans: Sequence[Span], scale: _Scale) -> tuple[tuple[str, str, str], ...]:
    spent: dict[str, float] = defaultdict(float)
    for span in spans:
        spent[span.phase] += max(0.0, min(span.end, scale.end) - max(span.start, scale.start))
    whole = math.fsum(spent.values()) or 1.0
    return tuple(
        (style(phase), phase, f"{100 * share / whole:.0f}%") for phase, share in _sorted(spent)
    )


def _svg(marks: Sequence[str], height: float, roles: Sequence[str]) -> Markup:
    said = escape("Phases over time of " + ", ".join(roles))
    return Markup(
        f'<svg class="gantt" width="100%" height="{height}" role="img" aria-label="{said}">'
        f"{''.join(marks)}</svg>"
    )


def seconds(length: float) -> str:
    """A short time for people: `420 ms`, `1.42 s`, `12 min`."""
    if length < 1:
        return f"{1000 * length:.0f} ms"
    if length < 90:
        return f"{length:.3g} s"
    return f"{length / 60:.0f} min" if length < 5400 else f"{length / 3600:.1f} h"


def clock(moment: float) -> str:
    """The time of day of a unix second, in this machine's time zone."""
    return time.strftime("%H:%M:%S", time.localtime(moment))
