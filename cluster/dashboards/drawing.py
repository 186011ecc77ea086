"""Panels drawn from a run folder: the same definitions as Grafana's, as SVG for our own pages."""

import math
from bisect import bisect_right
from dataclasses import dataclass

from markupsafe import Markup

from cluster.charts import MAX_POINTS, Series, line_chart, number, stacked_chart
from cluster.dashboards.panel import Panel
from cluster.metrics.history import Line, RunHistory
from cluster.metrics.table import find

MOST_LINES = 12
"""More cannot be told apart; the rest is left out and counted."""
NUM_COLORS = 8
"""Of the style sheet."""


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


def figure(history: RunHistory, panel: Panel) -> Figure | None:
    """The panel as SVG; None where the run has none of its figures."""
    if panel.is_by_step:
        found = [line for curve in panel.curves for line in history.lines(curve)]
        series, x_label = _by_step(found), "learner step"
    else:
        series, x_label = _over_time(history, panel)
    series = _distinct([one for one in series if one.steps])
    if not series:
        return None
    shown = series[:MOST_LINES]
    title = f"{panel.title} {'by learner step' if panel.is_by_step else 'over time'}"
    if panel.is_stacked:
        svg = stacked_chart(title, _aligned(shown), x_label)
    else:
        svg = line_chart(title, shown, x_label, is_smoothed=panel.is_by_step)
    return Figure(
        title=panel.title,
        unit=panel.unit,
        svg=svg,
        legend=tuple((one.color, one.name, number(one.last)) for one in shown),
        explanation=panel.explanation,
        warning=_warning(shown, len(series)),
    )


def figure_of_key(history: RunHistory, key: str) -> Figure | None:
    """A chart of one figure of the steps that has no panel."""
    line = history.line_of_key(key)
    if not line.x:
        return None
    (series,) = _by_step([line])
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


def _by_step(lines: list[Line]) -> list[Series]:
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


def _over_time(history: RunHistory, panel: Panel) -> tuple[list[Series], str]:
    """All curves in common bins of time, so that one look reads them all."""
    found = [line for curve in panel.curves for line in history.at_times(curve) if line.x]
    if not found:
        return [], ""
    start = history.began if history.began is not None else min(line.x[0] for line in found)
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
        series.append(Series(name=line.name, color=color % NUM_COLORS, steps=steps, values=values))
    return series, x_label


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
