"""docs/metrics.md from the table: `python -m cluster.metrics.document > docs/metrics.md`."""

import sys
from typing import Any

from rich.table import Table
from rich.text import Text

from cluster.dashboards.definition import DASHBOARDS
from cluster.methods_table import console
from cluster.metrics import table
from cluster.metrics.table import METRICS, Metric

INTRODUCTION = """\
# Metrics

This page is generated from `cluster/metrics/table.py`; write it again with
`python -m cluster.metrics.document > docs/metrics.md`.

Every figure of a run has a key in the run folder and a name in Prometheus.

- **step**: a row of `metrics.jsonl`, one a learner step.
- **live**: `telemetry/ROLE.jsonl`, every few seconds, told by each process of itself
  (`cluster.metrics.interval_s`); some 5 MB a day and process.
- **event**: lines of `events.jsonl`, counted.

A part of a key in braces is a label in Prometheus. All series have the label `run` as well, the
name of the run folder, in an ablation such as `grid/seed=0/low`: runs side by side on one cluster
need different names. Ray adds `SessionName`, `NodeAddress` and `WorkerId`. A histogram has
`_bucket` series. [dashboards.md](dashboards.md) shows how to look at all of them.
"""
GROUPS = {
    "Rewards and feedback": table.REWARDS,
    "The policy": table.POLICY,
    "The update": table.LEARNING,
    "Time, queues and speed": table.FLOW,
    "Fleet and faults": table.FLEET,
    "Memory": table.MEMORY,
}
HEAD = ("figure", "in Prometheus", "from", "kind", "unit", "labels", "meaning", "panels")


def listing() -> list[dict[str, Any]]:
    """Every figure, in the order of the table."""
    return [
        {
            "key": metric.key,
            "name": metric.exported,
            "source": metric.source,
            "kind": metric.kind,
            "unit": metric.unit,
            "labels": ["run", *_labels(metric)],
            "help": metric.help,
            "panels": panels_of(metric),
        }
        for metric in METRICS
    ]


def panels_of(metric: Metric) -> list[str]:
    """Panels that draw a figure, as `DASHBOARD: PANEL`."""
    return [
        f"{dashboard.title.removeprefix('Attune: ')}: {panel.title}"
        for dashboard in DASHBOARDS
        for panel in dashboard.panels
        if any(metric.key in (curve.key, curve.low, curve.high) for curve in panel.curves)
    ]


def document() -> str:
    """The whole page as Markdown."""
    parts = [INTRODUCTION]
    for title, metrics in GROUPS.items():
        lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
        lines += [f"| {' | '.join(_cells(metric))} |" for metric in metrics]
        parts.append(f"## {title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def print_list() -> None:
    """The table for the terminal, a line for each figure."""
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("figure", "in Prometheus", "kind", "unit"):
        shown.add_column(name, no_wrap=True)
    shown.add_column("meaning")  # the only one that gives way, to a narrow terminal
    for metric in METRICS:
        meaning = Text(metric.help, no_wrap=True, overflow="ellipsis")
        shown.add_row(metric.key, metric.exported, metric.kind, metric.unit, meaning)
    console().print(shown)


def _labels(metric: Metric) -> tuple[str, ...]:
    """Labels that its series have beside `run`; ages are buckets of their histogram."""
    return () if metric.kind == "histogram" else metric.labels


def _cells(metric: Metric) -> list[str]:
    return [
        f"`{metric.key}`",
        f"`{metric.exported}`",
        metric.source,
        metric.kind,
        metric.unit,
        ", ".join(f"`{label}`" for label in _labels(metric)),
        metric.help.replace("|", "\\|"),
        "; ".join(panels_of(metric)),
    ]


if __name__ == "__main__":
    sys.stdout.write(document())
