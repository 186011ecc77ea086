"""Up to five runs side by side: their curves laid over each other, and where they ended."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.charts import line_chart, number
from cluster.dashboards.definition import DASHBOARDS
from cluster.dashboards.drawing import Figure, by_step
from cluster.metrics.history import Line
from cluster.pages.library import Library, Run
from cluster.pages.view import RunView

MOST_RUNS = 5
TITLES = (
    "True reward", "Reward it learns from", "KL to the reference", "Reply length", "Entropy",
    "Replies that ended by themselves", "Loss", "Pairs ordered as labelled", "Preference loss",
    "Better replies that gained more", "Gradient norm", "Learning", "Staleness",
)  # fmt: skip
"""Of the panels that are compared, by the first figure of each."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A run in the table."""

    slug: str
    name: str
    color: int
    state: str
    method: str
    cells: tuple[str, ...]


ROWS = (
    "Steps", "True reward", "Reward it learns from", "KL to the reference", "Reply length",
    "Tokens per second", "Time",
)  # fmt: skip
"""Of the table."""


def values(library: Library, slugs: Sequence[str]) -> dict[str, Any]:
    """What the template shows; opens the runs one after the other."""
    runs = library.runs()
    known = {run.slug: run for run in runs}
    wanted = [known[slug] for slug in dict.fromkeys(slugs) if slug in known]
    chosen = wanted[:MOST_RUNS]
    columns: list[Column] = []
    lines: dict[str, list[Line]] = {title: [] for title in TITLES}
    is_live = False
    for color, run in enumerate(chosen):
        view = library.view(run.slug)
        if view is None:
            continue
        with view.opened():
            columns.append(_column(run, view, color))
            is_live |= view.is_running
            for title, own in _lines(view).items():
                lines[title] += [replace(line, name=run.name) for line in own]
    return {
        "runs": runs,
        "chosen": [run.slug for run in chosen],
        "columns": columns,
        "rows": ROWS,
        "figures": [one for title in TITLES if (one := _figure(title, lines[title], chosen))],
        "most": MOST_RUNS,
        "num_wanted": len(wanted),
        "is_live": is_live,
    }


def _lines(view: RunView) -> dict[str, list[Line]]:
    """Title -> the first line of that panel, without its range: five would hide each other."""
    panels = {panel.title: panel for board in DASHBOARDS for panel in board.panels}
    found = {}
    for title in TITLES:
        drawn = [line for curve in panels[title].curves for line in view.history.lines(curve)]
        found[title] = [replace(line, low=[], high=[]) for line in drawn[:1]]
    return found


def _figure(title: str, lines: Sequence[Line], chosen: Sequence[Run]) -> Figure | None:
    """One chart; the colour of a run is the same in all."""
    panels = {panel.title: panel for board in DASHBOARDS for panel in board.panels}
    colors = {run.name: color for color, run in enumerate(chosen)}
    series = [replace(one, color=colors[one.name]) for one in by_step(list(lines)) if one.steps]
    if not series:
        return None
    return Figure(
        title=title,
        unit=panels[title].unit,
        svg=line_chart(f"{title} by learner step", series),
        legend=tuple((one.color, one.name, number(one.last)) for one in series),
        explanation="",
        warning="",
    )


def _column(run: Run, view: RunView, color: int) -> Column:
    from cluster.headline import curve_change, display_name, reward_change
    from cluster.run_facts import arrow, duration
    from cluster.run_record import finite

    record = view.record
    gold = next((name for name in record.gold_names if "/" not in name), None)
    changes = (
        reward_change(record, gold) if gold else None,
        reward_change(record, "total"),
        curve_change(record, "kl/ref_k1"),
        curve_change(record, "length/mean"),
    )
    speed, elapsed = (finite(record.series(key)[1]) for key in ("tokens_per_s", "time_s"))
    planned = f" of {record.num_steps}" if record.num_steps else ""
    cells = (
        f"{view.step}{planned}",
        *("–" if change is None else arrow(change) for change in changes),
        number(sum(speed) / len(speed)) if speed else "–",
        duration(elapsed[-1]) if elapsed else "–",
    )
    return Column(
        slug=run.slug, name=run.name, color=color, state=view.state,
        method=display_name(record), cells=cells,
    )  # fmt: skip
