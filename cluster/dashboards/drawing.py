"""Panels drawn from a run folder: the same definitions as Grafana's, as SVG for our own pages."""

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace

from markupsafe import Markup

from cluster.charts import MAX_POINTS, Series, line_chart, number, stacked_chart
from cluster.dashboards.definition import DASHBOARDS
from cluster.dashboards.panel import Panel
from cluster.metrics.history import SILENT_S, Line, RunHistory
from cluster.metrics.table import find

MOST_LINES = 12
"""More cannot be told apart; the rest is left out and counted."""
NUM_COLORS = 8
"""Of the style sheet."""
NO_FIGURES = {"step", "policy_version", "time_s", "unix_time"}
"""Of a row of metrics.jsonl: what the others are drawn over."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawn chart and what stands around it."""

    title: str
    unit: str
    svg: Markup
    legend: tuple[tuple[int, str, str], ...]
    """(colour, name, newest value)."""
    explanation: str
    warning: str


@dataclass(frozen=True, kw_only=True)
class Window:
    """From where on a run is drawn."""

    step: float = 0.0
    time: float = 0.0
    """Unix seconds."""


WHOLE = Window()


def figure(history: RunHistory, panel: Panel, window: Window = WHOLE) -> Figure | None:
    """The panel as SVG; None where the run has none of its figures in the window."""
    if panel.is_by_step:
        found = [line for curve in panel.curves for line in history.lines(curve)]
        series, x_label = by_step([_since(line, window.step) for line in found]), "learner step"
    else:
        series, x_label = _over_time(history, panel, window.time)
    series = _distinct([one for one in series if one.steps])
    if not series:
        return None
    shown = series[:MOST_LINES]
    title = f"{panel.title} {'by learner step' if panel.is_by_step else 'over time'}"
    if panel.is_stacked:
        svg = stacked_chart(title, _aligned(shown), x_label)
    else:
        svg = line_chart(title, shown, x_label, is_smoothed=panel.is_by_step or panel.is_noisy)
    return Figure(
        title=panel.title,
        unit=panel.unit,
        svg=svg,
        legend=tuple((one.color, one.name, number(one.last)) for one in shown),
        explanation=panel.explanation,
        warning=_warning(shown, len(series)),
    )


def keys_without_panel(history: RunHistory) -> list[str]:
    """What was measured and has no panel, but for the spread of each part of a reward."""
    panels = [panel for dashboard in DASHBOARDS for panel in dashboard.panels]
    curves = [curve for panel in panels for curve in panel.curves]
    shown = {key for curve in curves for key in history.keys_of(curve)}
    return sorted(
        key
        for key in history.step_keys - shown - NO_FIGURES
        if (found := find(key)) is None or not found[0].key.startswith("reward/{reward}/p")
    )


def figure_of_key(history: RunHistory, key: str, window: Window = WHOLE) -> Figure | None:
    """A chart of one figure of the steps that has no panel."""
    line = _since(history.line_of_key(key), window.step)
    if not line.x:
        return None
    (series,) = by_step([line])
    found = find(key)
    return Figure(
        title=key,
        unit=found[0].unit if found else "",
        svg=line_chart(f"{key} by learner step", [series]),
        legend=((0, key, number(series.last)),),
        explanation=found[0].help if found else "",
        warning=_warning([series], 1),
    )


def _warning(shown: list[Series], count: int) -> str:
    broken = sum(not math.isfinite(value) for one in shown for value in one.values)
    words = [f"{broken} values are not finite."] if broken else []
    if count > len(shown):
        words.append(f"{count - len(shown)} more are not drawn.")
    return " ".join(words)


def _since(line: Line, x: float) -> Line:
    at = bisect_left(line.x, x)
    if not at:
        return line
    return replace(line, x=line.x[at:], y=line.y[at:], low=line.low[at:], high=line.high[at:])


def by_step(lines: list[Line]) -> list[Series]:
    """Lines over learner steps, each in a colour of its own."""
    return [
        Series(
            name=line.name,
            color=color % NUM_COLORS,
            steps=[int(x) for x in line.x],
            values=line.y,
            low=line.low,
            high=line.high,
        )
        for color, line in enumerate(lines)
    ]


def _over_time(history: RunHistory, panel: Panel, since: float) -> tuple[list[Series], str]:
    """All curves in common bins of time, so that one look reads them all."""
    lines = [line for curve in panel.curves for line in history.at_times(curve)]
    found = [line for line in (_since(line, since) for line in lines) if line.x]
    if not found:
        return [], ""
    start = history.began if history.began is not None else min(line.x[0] for line in found)
    start = max(start, since)
    end = max(line.x[-1] for line in found)
    length = max(end - start, 1.0)
    scale, x_label = _clock(length)
    count = min(MAX_POINTS, max(2, math.ceil(length / 2.0)))
    centres = [round((i + 0.5) * length / count / scale, 2) for i in range(count)]
    series = []
    for color, line in enumerate(found):
        steps, values = [], []
        for centre, value in zip(centres, _binned(line, start, length / count, count), strict=True):
            if value is not None:
                steps.append(centre)
                values.append(value)
        series.append(
            Series(
                name=line.name,
                color=color % NUM_COLORS,
                steps=steps,
                values=values,
                gap=_gap(line, length / count) / scale,
            )
        )
    return series, x_label


def _gap(line: Line, width: float) -> float:
    """Seconds without a point after which a process was not there, at bins of that width."""
    is_told_often = len(line.x) > 1 and line.x[-1] - line.x[0] < SILENT_S * len(line.x)
    return max(SILENT_S, 2.5 * width) if is_told_often else math.inf


def _clock(length_s: float) -> tuple[float, str]:
    """Seconds in a unit of the axis, and its name."""
    if length_s < 300:
        return 1.0, "seconds"
    if length_s < 3 * 3600:
        return 60.0, "minutes"
    return 3600.0, "hours"


def _binned(line: Line, start: float, width: float, count: int) -> list[float | None]:
    """Means by bin; None in bins without a point."""
    means: list[float | None] = []
    at = bisect_right(line.x, start - 1e-9)
    for i in range(count):
        end = start + (i + 1) * width
        until = len(line.x) if i == count - 1 else bisect_right(line.x, end)
        values = line.y[at:until]
        means.append(math.fsum(values) / len(values) if values else None)
        at = until
    return means


def _distinct(series: list[Series]) -> list[Series]:
    """Without curves that lie exactly on the first: one reward of weight 1 is the combined one."""
    return [one for i, one in enumerate(series) if i == 0 or one.values != series[0].values]


def _aligned(series: list[Series]) -> list[Series]:
    """The same steps for all, 0 where a phase did not happen (a checkpoint, mostly)."""
    steps = sorted({step for one in series for step in one.steps})
    aligned = []
    for one in series:
        values = dict(zip(one.steps, one.values, strict=True))
        filled = [values.get(step, 0.0) for step in steps]
        aligned.append(Series(name=one.name, color=one.color, steps=steps, values=filled))
    return aligned
