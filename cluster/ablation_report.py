"""The results of an ablation: results.parquet, results.md and the self-contained ablation.html."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from cluster.ablation_results import (
    CellSummary,
    Curve,
    Level,
    PairSummary,
    Result,
    clear_best,
    compare_cells,
    curves,
    effects,
    results_of,
    summarise,
)
from cluster.charts import Point, Series, line_chart, number, scatter_chart
from cluster.dashboards.drawing import Figure
from cluster.headline import short
from cluster.ledger import write_table
from cluster.templates import render_page
from configs.ablation_plan import Plan
from rl.statistics import Interval

NUM_COLORS = 8
MAX_PAIRED = 12
"""Cells of which every two are compared; the axes of a larger grid say more than all its pairs."""
SHOWN = pa.struct([("before", pa.float64()), ("after", pa.float64()), ("training", pa.float64())])
SCHEMA = pa.schema(
    [
        pa.field("cell", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        ("method", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("judge", pa.string()),
        ("prompts", pa.int64()),
        ("before", pa.float64()),
        ("after", pa.float64()),
        ("gain", pa.float64()),
        ("gain_low", pa.float64()),
        ("gain_high", pa.float64()),
        ("win_rate", pa.float64()),
        ("win_low", pa.float64()),
        ("win_high", pa.float64()),
        ("kl", pa.float64()),
        ("length_before", pa.float64()),
        ("length_after", pa.float64()),
        ("labels", pa.int64()),
        ("shown", pa.map_(pa.string(), SHOWN)),
        ("steps", pa.int64()),
        ("wall_s", pa.float64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table."""

    values: tuple[tuple[str, str], ...]
    """(value, interval or other detail) of each column."""
    color: int | None = None
    is_best: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table, drawn twice: as Markdown and on the page."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    explanation: str


def write_results(plan: Plan) -> Path:
    """Write all three from whatever runs are on disk; returns the path of the page."""
    results = results_of(plan)
    cells, pairs = summarise(plan, results), compare_cells(plan, results)
    plan.out.mkdir(parents=True, exist_ok=True)
    rows = [
        asdict(r) | {"shown": list(asdict(r)["shown"].items() if r.shown else ())} for r in results
    ]
    write_table(pa.Table.from_pylist(rows, schema=SCHEMA), plan.out / "results.parquet")
    tables = [_cell_table(plan, cells)]
    tables += [_shown_table(name, cells) for name in plan.show]
    tables += [_axis_table(plan, axis, found) for axis, found in effects(plan, results).items()]
    tables += [_pair_table(plan, pairs)] if pairs and len(cells) <= MAX_PAIRED else []
    said, notes = headline(plan, cells, pairs), _notes(plan, results)
    (plan.out / "results.md").write_text(_markdown(plan, said, notes, tables), encoding="utf-8")
    page = render_page(
        "ablation.html.jinja",
        name=plan.out.name,
        headline=said,
        notes=notes,
        tables=tables,
        figures=_figures(plan, results, curves(plan)),
        cells=[(name, ", ".join(given) or "the base") for name, given in plan.cells.items()],
    )
    path = plan.out / "ablation.html"
    path.write_text(page, encoding="utf-8")
    return path


def headline(plan: Plan, cells: Sequence[CellSummary], pairs: Sequence[PairSummary]) -> str:
    """Who gained most, and whether that is sure, in one sentence."""
    ranked = sorted(
        ((cell.gain, cell) for cell in cells if cell.gain is not None),
        key=lambda pair: -pair[0].mean,
    )
    if not ranked:
        return "No run has finished: there is nothing to compare yet."
    gain, best = ranked[0]
    seeds = f"{best.num_done} seed" + ("s" if best.num_done > 1 else "")
    told = f"{best.name} gained {short(gain.mean, sign=True)} in {plan.judge} over {seeds}"
    if len(ranked) == 1:
        return f"{told}; no other cell has finished."
    other_gain, other = ranked[1]
    rest = f"{other.name} ({short(other_gain.mean, sign=True)})"
    pair = next(
        p for p in (*pairs, None) if p is None or {p.first, p.second} == {best.name, other.name}
    )
    if pair is None:
        return f"{told}, the most; {rest} is next, on other seeds."
    if not math.isfinite(pair.difference.low):
        return f"{told}, the most; {rest} is next, and one shared seed cannot say how surely."
    low, high = sorted((abs(pair.difference.low), abs(pair.difference.high)))
    if pair.is_clear:
        return (
            f"{told}, more than {rest}: by {short(low)} to {short(high)} on the seeds they share "
            "(95% interval)."
        )
    return f"{told}, the most, but {rest} is not clearly behind: their 95% interval holds zero."


def _notes(plan: Plan, results: Sequence[Result]) -> list[str]:
    notes = [
        f"{result.cell}, seed {result.seed} failed: {result.reason}"
        for result in results
        if result.status == "failed"
    ]
    missing = sum(result.status == "missing" for result in results)
    if missing:
        notes.append(f"{missing} of {len(results)} runs have not finished and are left out.")
    moving = {
        run.cell: run.config.model.reference_update
        for run in plan.runs
        if run.config.model.reference_update in ("reset", "ema")
    }
    notes += [
        f"{cell}: its reference moves ({update}), so its KL is not to the start and is not "
        "comparable with the others'."
        for cell, update in moving.items()
    ]
    return notes


# ---- tables --------------------------------------------------------------------------------------


def _cell_table(plan: Plan, cells: Sequence[CellSummary]) -> Table:
    best = clear_best(cells)
    columns = (
        "cell",
        "seeds",
        f"{plan.judge} before",
        f"{plan.judge} after",
        "gain",
        "win rate",
        "KL (nats)",
        "tokens",
        "labels",
        "time (s)",
    )
    rows = [
        Row(
            values=(
                (cell.name, ""),
                (f"{cell.num_done} of {cell.num_planned}", ""),
                _mean(cell.before, short),
                _mean(cell.after, short),
                _bounded(cell.gain, _signed),
                _bounded(cell.win_rate, "{:.1%}".format),
                _bounded(cell.kl, short),
                (_arrow(cell), ""),
                _mean(cell.labels, "{:,.0f}".format),
                _mean(cell.wall_s, "{:,.0f}".format),
            ),
            color=index % NUM_COLORS,
            is_best=cell.name == best,
        )
        for index, cell in enumerate(cells)
    ]
    return Table(
        title="Cells",
        columns=columns,
        rows=tuple(rows),
        explanation=(
            "Means over seeds; in brackets 95% intervals over seeds (Student's t), which a single "
            "seed has not. That of the win rate is never narrower than over all prompts (Wilson). "
            "A cell is bold "
            "where the interval of its gain lies above all others. Win rate: share of held-out "
            "prompts answered better than by the starting policy, as the judge sees it, ties "
            "counting half. KL: of held-out replies to the reference; where that moves, of the "
            "policy's own samples over the last tenth of the steps. Labels: replies that were "
            "judged to learn from."
        ),
    )


def _shown_table(name: str, cells: Sequence[CellSummary]) -> Table:
    rows = [
        Row(
            values=(
                (cell.name, ""),
                *(_bounded(one, "{:.4f}".format) for one in cell.shown.get(name, (None,) * 3)),
            ),
            color=index % NUM_COLORS,
        )
        for index, cell in enumerate(cells)
    ]
    return Table(
        title=f"Reward {name}",
        columns=("cell", "before", "after", "in training"),
        rows=tuple(rows),
        explanation=(
            "Means over seeds with 95% intervals: of held-out replies before and after, and of all "
            "replies that the run learned from."
        ),
    )


def _axis_table(plan: Plan, axis: str, levels: Sequence[Level]) -> Table:
    rows = [
        Row(
            values=(
                (level.name, ""),
                (str(level.num_cells), ""),
                _mean(level.after, short),
                _bounded(level.gain, _signed),
                _bounded(level.gap, _signed),
            )
        )
        for level in levels
    ]
    return Table(
        title=f"By {axis}",
        columns=(
            axis,
            "cells",
            f"{plan.judge} after",
            "gain",
            f"gain less that of {levels[0].name}",
        ),
        rows=tuple(rows),
        explanation=(
            "Means over all cells of a level under one seed, then over seeds with 95% intervals; "
            "seeds under which a cell is missing are left out. The last column is paired by seed."
        ),
    )


def _pair_table(plan: Plan, pairs: Sequence[PairSummary]) -> Table:
    rows = [
        Row(
            values=(
                (f"{pair.first} − {pair.second}", ""),
                (str(pair.num_seeds), ""),
                _bounded(pair.difference, _signed),
                (_verdict(pair), ""),
            )
        )
        for pair in pairs
    ]
    return Table(
        title="Differences on the same seeds",
        columns=("cells", "seeds", f"difference of gains in {plan.judge}", "95% interval"),
        rows=tuple(rows),
        explanation=(
            "Paired: both cells of a seed share its data order and, on the built-in world, its "
            "starting policy and reward model. No correction for the number of comparisons."
        ),
    )


def _verdict(pair: PairSummary) -> str:
    if not math.isfinite(pair.difference.low):
        return "one seed: none"
    return "without zero" if pair.is_clear else "holds zero"


def _arrow(cell: CellSummary) -> str:
    """Length of held-out replies before and after."""
    if cell.length_before is None or cell.length is None:
        return "–"
    return f"{cell.length_before.mean:.1f} → {cell.length.mean:.1f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _mean(interval: Interval | None, form: Callable[[float], str]) -> tuple[str, str]:
    return (form(interval.mean), "") if interval else ("–", "")


def _bounded(interval: Interval | None, form: Callable[[float], str]) -> tuple[str, str]:
    if interval is None or not math.isfinite(interval.low):
        return _mean(interval, form)
    return form(interval.mean), f"[{form(interval.low)}, {form(interval.high)}]"


def _markdown(plan: Plan, said: str, notes: Sequence[str], tables: Sequence[Table]) -> str:
    parts = [f"# {plan.out.name}", said]
    parts += ["\n".join(f"- {note}" for note in notes)] if notes else []
    for table in tables:
        parts += [f"## {table.title}", _markdown_table(table), table.explanation]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    lines = [
        "| " + " | ".join(table.columns) + " |",
        "|---|" + "---:|" * (len(table.columns) - 1),
    ]
    for row in table.rows:
        bold = "**" if row.is_best else ""
        shown = [f"{bold}{value}{bold} {detail}".strip() for value, detail in row.values]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


# ---- charts --------------------------------------------------------------------------------------


def _figures(plan: Plan, results: Sequence[Result], found: Sequence[Curve]) -> list[Figure]:
    colors = {name: index % NUM_COLORS for index, name in enumerate(plan.cells)}
    figures = [_frontier(plan, results, colors)]
    if found:
        figures += [_labels_curve(plan, found, colors), _lengths(found, colors)]
    return [figure for figure in figures if figure]


def _frontier(plan: Plan, results: Sequence[Result], colors: dict[str, int]) -> Figure | None:
    done = [result for result in results if result.status == "done"]
    points = [
        Point(name=f"start, seed {seed}", color=None, x=0.0, y=before)
        for seed, before in {r.seed: r.before for r in done if r.before is not None}.items()
    ]
    runs = [
        Point(name=f"{r.cell}, seed {r.seed}", color=colors[r.cell], x=r.kl, y=r.after)
        for r in done
        if r.kl is not None and r.after is not None
    ]
    if not runs:
        return None
    shown = [name for name in plan.cells if any(r.cell == name and r.kl is not None for r in done)]
    return Figure(
        title="Reward and KL",
        unit=f"{plan.judge} of held-out replies",
        svg=scatter_chart(
            f"{plan.judge} after the run by KL to the reference",
            [*points, *runs],
            "KL, nats per reply",
        ),
        legend=tuple((colors[name], name, "") for name in shown),
        explanation=(
            "One mark per run, hollow ones the starting policies; the dashed line joins the runs "
            "that no other beats at as little KL."
        ),
        warning="",
    )


def _labels_curve(plan: Plan, found: Sequence[Curve], colors: dict[str, int]) -> Figure:
    series = [
        Series(
            name=curve.cell,
            color=colors[curve.cell],
            steps=curve.labels,
            values=curve.reward,
            low=curve.low,
            high=curve.high,
        )
        for curve in found
    ]
    return Figure(
        title="Labels used",
        unit=f"{plan.judge} of the replies it learned from",
        svg=line_chart(f"{plan.judge} by judged replies", series, "judged replies"),
        legend=tuple((one.color, one.name, number(one.last)) for one in series),
        explanation="Mean over seeds; shaded from the lowest to the highest seed.",
        warning="",
    )


def _lengths(found: Sequence[Curve], colors: dict[str, int]) -> Figure:
    series = [
        Series(name=curve.cell, color=colors[curve.cell], steps=curve.steps, values=curve.length)
        for curve in found
    ]
    return Figure(
        title="Reply length",
        unit="tokens",
        svg=line_chart("Reply length by learner step", series),
        legend=tuple((one.color, one.name, number(one.last)) for one in series),
        explanation="Of the replies it learned from, mean over seeds.",
        warning="",
    )
