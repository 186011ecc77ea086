"""Curves as PromQL: one rule for each kind of metric.

    gauge      max by (run, LABELS) (NAME{...})
    counter    sum by (run, LABELS) (rate(NAME_total{...}[WINDOW]))      how fast it grows
               sum by (run, LABELS) (NAME_total{...})                    how high it stands
    histogram  sum by (le) (increase(NAME_bucket{...}[WINDOW]))          all runs together

Ray puts a label WorkerId on each series. Where the process that exports a run is started anew, the
gauges of the old one stay for some seconds, at their last value, and its counters for good: `max`
shows one value where a plain query would zigzag between two, and `sum` goes on where the old one
stood.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from cluster.dashboards.panel import Curve, Panel
from cluster.metrics.table import BY_KEY, Metric

STANDS_AT_0 = {
    "fleet/restarts": "fleet/wanted",
    "fleet/retried_groups": "queue/waiting_groups",
    "judge/{judge}/retries": "judge/{judge}/latency_s",
}
"""Counter -> gauge of the same labels that the same process tells. Ray exports no counter that
never counted: it stands at 0 wherever the gauge is."""

SESSION = "SessionName"
"""Ray's label of one life of a cluster."""
Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Which series are asked for, and over how long growth is taken."""

    matchers: tuple[str, ...] = ()
    """As in `run="first"`."""
    window: str = "1m"


PLAIN = Scope()
"""Everything that a Prometheus holds; for alerts, and to try queries out."""
GRAFANA = Scope(matchers=('SessionName=~"$SessionName"', 'run=~"$run"'), window="$__rate_interval")
"""What is chosen at the top of a dashboard."""
RAY = Scope(matchers=('SessionName=~"$SessionName"',), window="$__rate_interval")
"""On a dashboard of Ray's own, which knows no runs."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """One query of a panel."""

    expr: str
    legend: str
    """With labels as Grafana writes them: `{{actor}}`."""
    key: str
    """The figure that it shows."""
    where: Labels = ()
    edge: str = ""
    """`low` or `high` where it is an edge of a shaded range."""


def queries(panel: Panel, scope: Scope) -> list[Query]:
    """All queries of a panel, curve by curve; after a curve, the edges of its shaded range."""
    return [query for curve in panel.curves for query in _of_curve(curve, scope)]


def selector(metric: Metric, scope: Scope, where: Labels = ()) -> str:
    """The series of a metric, of a histogram its buckets: `NAME{...}`."""
    matchers = [*scope.matchers, *(f'{name}="{value}"' for name, value in where)]
    suffix = "_bucket" if metric.kind == "histogram" else ""
    return f"{metric.exported}{suffix}" + (f"{{{', '.join(matchers)}}}" if matchers else "")


def value(key: str, scope: Scope = PLAIN, where: Labels = (), *, is_rate: bool = False) -> str:
    """The newest values of a figure, by run and by all labels that `where` leaves open."""
    metric = BY_KEY[key]
    series, by = selector(metric, scope, where), _by(metric, where)
    match metric.kind:
        case "gauge":
            return f"max by ({by}) ({series})"
        case "counter" if is_rate:
            return f"sum by ({by}) (rate({series}[{scope.window}]))"
        case "counter":
            stands = f"sum by ({by}) ({series})"
            zero = STANDS_AT_0.get(key)
            return f"{stands} or 0 * {value(zero, scope, where)}" if zero else stands
        case "histogram":
            return f"sum by (le) (increase({series}[{scope.window}]))"


def over_time(function: str, key: str, window: str) -> str:
    """A gauge over a while, such as `avg_over_time`, by run and labels; of all runs."""
    metric = BY_KEY[key]
    return f"max by ({_by(metric)}) ({function}({selector(metric, PLAIN)}[{window}]))"


def grown(key: str, ago: str, scope: Scope = PLAIN, where: Labels = (), zero: str = "") -> str:
    """By how much a counter grew since `ago`, to the count.

    Where it has not counted yet it grew by 0, if a gauge of the same labels says that there is
    somebody: `zero`, or that of `STANDS_AT_0`. `increase` would miss the count with which a series
    begins, and of rare events there may be no other.
    """
    metric, zero = BY_KEY[key], zero or STANDS_AT_0.get(key, "")
    # A run that goes on in another Ray begins to count anew: what the one before counted is not
    # taken off.
    series, by = selector(metric, scope, where), f"{_by(metric, where)}, {SESSION}"
    now, before = f"sum by ({by}) ({series})", f"sum by ({by}) ({series} offset {ago})"
    if not zero:
        return f"{now} - ({before} or 0 * {now})"
    nothing = f"0 * max by ({by}) ({selector(BY_KEY[zero], scope)})"
    return f"({now} or {nothing}) - ({before} or {nothing} or 0 * {now})"


def _by(metric: Metric, where: Labels = ()) -> str:
    fixed = {name for name, _ in where}
    return ", ".join(["run", *(name for name in metric.labels if name not in fixed)])


def _of_curve(curve: Curve, scope: Scope) -> Iterator[Query]:
    metric = curve.metric
    expr = value(curve.key, scope, curve.where, is_rate=curve.is_rate)
    if metric.kind == "histogram":
        yield Query(expr=expr, legend="{{le}}", key=curve.key, where=curve.where)
        return
    label = re.sub(r"\{(\w+)\}", r"{{\1}}", curve.label)
    legend = f"{label} · {{{{run}}}}"
    yield Query(expr=expr, legend=legend, key=curve.key, where=curve.where)
    for edge, key in (("low", curve.low), ("high", curve.high)):
        if key:
            # Grafana fills between two names, so there can be one range: that of the only run.
            series = selector(BY_KEY[key], scope, curve.where)
            only = f"count(count by (run) ({series})) == 1"
            yield Query(
                expr=f"max({series}) and on () {only}",
                legend=f"{label}, {edge}",
                key=key,
                where=curve.where,
                edge=edge,
            )
