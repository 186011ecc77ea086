"""What the runs of an ablation came to: facts of each run, statistics of each cell and each pair.

Seeds are the unit: a cell's interval is Student's t over its seeds, and two cells are compared on
the seeds they share. Held-out prompts are the unit only inside one run.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean

import pyarrow.parquet as pq

from cluster.evaluation import JudgedReply, with_total
from cluster.ledger import Ledger
from cluster.run_record import RunRecord, read_run
from configs.ablation_plan import Plan, PlannedRun
from rl.statistics import Interval, mean_interval, paired_bootstrap, proportion_interval

FAILED = "failed.txt"
"""In the folder of a run that broke: why, in one line. A run that goes on takes it away."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A further reward of one run."""

    before: float | None
    """Mean over held-out replies; so is `after`. None of a part that its reward does not have."""
    after: float | None
    training: float | None
    """Mean over all replies that it learned from."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row of results.parquet; None where a run did not come so far, or has no such number."""

    cell: str
    seed: int
    method: str
    status: str
    """`done`, `failed`, or `missing`: not begun, or broken off."""
    reason: str | None = None
    """Why it failed."""
    judge: str
    prompts: int | None = None
    """Held-out prompts that were answered before and after."""
    before: float | None = None
    """Mean of the judge's reward; so is `after`."""
    after: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    """95% bootstrap interval over held-out prompts, up to `gain_high`."""
    gain_high: float | None = None
    win_rate: float | None = None
    """Share of held-out prompts with a better reply than the start's; ties count half."""
    win_low: float | None = None
    """95% Wilson interval over held-out prompts, up to `win_high`."""
    win_high: float | None = None
    kl: float | None = None
    """Nats per reply of the policy to its reference, over the last tenth of the steps."""
    length_before: float | None = None
    length_after: float | None = None
    """Mean tokens of held-out replies."""
    labels: int | None = None
    """Replies that were judged to learn from, all steps."""
    shown: dict[str, "Shown"] | None = None
    """The plan's further rewards by name."""
    steps: int | None = None
    wall_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class CellSummary:
    """One cell over its finished seeds: means, with 95% intervals where there are two or more."""

    name: str
    num_done: int
    num_planned: int
    before: Interval | None
    after: Interval | None
    gain: Interval | None
    win_rate: Interval | None
    """Over seeds, but never narrower than over all their prompts."""
    kl: Interval | None
    length_before: Interval | None
    length: Interval | None
    labels: Interval | None
    wall_s: Interval | None
    shown: dict[str, tuple[Interval | None, Interval | None, Interval | None]]
    """Name -> before, after and in training."""


@dataclass(frozen=True, kw_only=True)
class PairSummary:
    """Gain of cell `first` minus that of `second` on the seeds that both have finished."""

    first: str
    second: str
    num_seeds: int
    difference: Interval

    @property
    def is_clear(self) -> bool:
        """Whether zero lies outside the interval."""
        gap = self.difference
        return math.isfinite(gap.low) and (gap.low > 0 or gap.high < 0)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A cell's training by step, mean over seeds, with the lowest and the highest seed."""

    cell: str
    steps: list[int]
    labels: list[int]
    """Replies judged by the end of each step."""
    reward: list[float]
    low: list[float]
    high: list[float]
    length: list[float]


# ---- one run -------------------------------------------------------------------------------------


def results_of(plan: Plan) -> list[Result]:
    """One result per planned run, in order; whatever is on disk is read."""
    return [result_of(run, plan.judge, plan.show) for run in plan.runs]


def result_of(run: PlannedRun, judge: str, show: Sequence[str] = ()) -> Result:
    """The facts of one run."""
    own = {"cell": run.cell, "seed": run.seed, "method": run.config.algorithm.name, "judge": judge}
    if not (run.folder / "summary.json").exists():
        failed = run.folder / FAILED
        if failed.exists():
            return Result(**own, status="failed", reason=failed.read_text().strip())
        return Result(**own, status="missing")
    record = read_run(run.folder)
    before, after = (judged(run, judge, name) for name in ("before", "after"))
    gap = paired_bootstrap(after, before)
    labels = labels_used(run.folder)
    return Result(
        **own,
        status="done",
        prompts=len(after),
        before=fmean(before),
        after=fmean(after),
        gain=gap.mean,
        gain_low=gap.low,
        gain_high=gap.high,
        win_rate=gap.win_rate,
        win_low=gap.win_low,
        win_high=gap.win_high,
        kl=final_kl(run),
        length_before=record.summary.get("length_before"),
        length_after=record.summary.get("length_after"),
        labels=max(labels.values(), default=None),
        shown={name: _shown(run, record, name) for name in show},
        steps=record.summary.get("steps"),
        wall_s=record.summary.get("wall_s"),
    )


def _shown(run: PlannedRun, record: RunRecord, name: str) -> Shown:
    _, values = record.series(f"reward/{name}/mean")
    return Shown(
        before=_mean_of(run, name, "before"),
        after=_mean_of(run, name, "after"),
        training=fmean(values) if values else None,
    )


def _mean_of(run: PlannedRun, name: str, when: str) -> float | None:
    try:
        return fmean(judged(run, name, when))
    except KeyError:
        return None


def judged(run: PlannedRun, judge: str, when: str) -> list[float]:
    """The judge's reward of every held-out reply, `before` or `after`, in the prompts' order."""
    rows = json.loads((run.folder / f"{when}.json").read_text(encoding="utf-8"))
    replies = with_total([JudgedReply(**row) for row in rows], run.config.feedback)
    return [reply.rewards[judge] for reply in replies]


def labels_used(run_dir: Path) -> dict[int, int]:
    """Step -> replies judged up to its end, from the ledger; also those of groups filtered out."""
    total, used = 0, {}
    for step, labels in sorted(Ledger(run_dir).progress()[1].items()):
        total += labels
        used[step] = total
    return used


def final_kl(run: PlannedRun) -> float | None:
    """Mean log-ratio of held-out replies after the run to the reference.

    Where the reference moves or decoding is greedy: of the policy's own samples over the last tenth
    of the steps, which is no KL to the start; stored and the reference's replies are none either.
    None where there is nothing to measure.
    """
    if run.config.model.reference_update == "none":
        return None
    rows = json.loads((run.folder / "after.json").read_text(encoding="utf-8"))
    known = [row["log_ratio"] for row in rows if row.get("log_ratio") is not None]
    return fmean(known) if known else _kl_of_samples(run)


def _kl_of_samples(run: PlannedRun) -> float | None:
    folders = sorted((run.folder / "experience").glob("step=*"), key=_step_of)
    ratios: list[float] = []
    for folder in folders[-max(1, len(folders) // 10) :]:
        for path in sorted(folder.glob("*.parquet")):
            # Not pq.read_table: it would take `step=N` for a column and clash with the file's own.
            with pq.ParquetFile(path) as file:
                table = file.read(columns=["source", "old_logprobs", "ref_logprobs"])
            ratios += [
                math.fsum(row["old_logprobs"]) - math.fsum(row["ref_logprobs"])
                for row in table.to_pylist()
                if row["source"] == "policy"
            ]
    return fmean(ratios) if ratios else None


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step="))


# ---- over seeds ----------------------------------------------------------------------------------


def summarise(plan: Plan, results: Sequence[Result]) -> list[CellSummary]:
    """One summary per cell, in the order of the file."""
    return [_cell([r for r in results if r.cell == name], name) for name in plan.cells]


def _cell(results: Sequence[Result], name: str) -> CellSummary:
    done = [result for result in results if result.status == "done"]
    fields = ("before", "after", "gain", "kl", "length_before", "labels", "wall_s")
    found = {field: over_seeds([getattr(result, field) for result in done]) for field in fields}
    return CellSummary(
        name=name,
        num_done=len(done),
        num_planned=len(results),
        win_rate=_win_rate(done),
        length=over_seeds([result.length_after for result in done]),
        shown=_shown_over_seeds(done),
        **found,
    )


def _shown_over_seeds(
    done: Sequence[Result],
) -> dict[str, tuple[Interval | None, Interval | None, Interval | None]]:
    found = {}
    for name in (done[0].shown or {}) if done else {}:
        values = [result.shown[name] for result in done if result.shown]
        found[name] = (
            over_seeds([value.before for value in values]),
            over_seeds([value.after for value in values]),
            over_seeds([value.training for value in values]),
        )
    return found


def over_seeds(values: Sequence[float | None]) -> Interval | None:
    """Mean and t-interval of one number per seed; NaN bounds for a single seed, None for none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    if len(known) == 1:
        return Interval(mean=known[0], low=math.nan, high=math.nan)
    return mean_interval(known)


def _win_rate(done: Sequence[Result]) -> Interval | None:
    """Mean over seeds; the interval is never narrower than that of all their prompts.

    Two seeds may agree by chance to the last prompt, which makes neither of them certain.
    """
    known = [(r.win_rate, r.prompts) for r in done if r.win_rate is not None and r.prompts]
    found = over_seeds([rate for rate, _ in known])
    if found is None:
        return None
    wins = sum(rate * prompts for rate, prompts in known)
    pooled = proportion_interval(wins, sum(prompts for _, prompts in known))
    low, high = pooled.low, pooled.high
    if math.isfinite(found.low):
        low, high = max(0.0, min(low, found.low)), min(1.0, max(high, found.high))
    return Interval(mean=found.mean, low=low, high=high)


def compare_cells(plan: Plan, results: Sequence[Result]) -> list[PairSummary]:
    """Every two cells that share a finished seed."""
    gains = {
        name: {r.seed: r.gain for r in results if r.cell == name and r.gain is not None}
        for name in plan.cells
    }
    pairs = []
    for first, second in combinations(plan.cells, 2):
        shared = [seed for seed in gains[first] if seed in gains[second]]
        difference = over_seeds([gains[first][seed] - gains[second][seed] for seed in shared])
        if difference is not None:
            pairs.append(
                PairSummary(
                    first=first, second=second, num_seeds=len(shared), difference=difference
                )
            )
    return pairs


@dataclass(frozen=True, kw_only=True)
class Level:
    """One place on one axis of a grid, over all other axes."""

    name: str
    num_cells: int
    after: Interval
    """Mean of its cells under one seed, over seeds."""
    gain: Interval
    gap: Interval | None
    """Its gain less that of the axis's first level, seed by seed; None for the first."""


def effects(plan: Plan, results: Sequence[Result]) -> dict[str, list[Level]]:
    """Axis -> its levels, over the seeds under which every cell of the grid has finished."""
    done = {(r.cell, r.seed): r for r in results if r.gain is not None}
    seeds = dict.fromkeys(r.seed for r in results)
    whole = [seed for seed in seeds if all((cell, seed) in done for cell in plan.cells)]
    if not whole:
        return {}
    found: dict[str, list[Level]] = {}
    for axis, levels in plan.levels.items():
        first: list[float] = []
        for name in dict.fromkeys(levels.values()):
            cells = [cell for cell, level in levels.items() if level == name]
            runs = [[done[cell, seed] for cell in cells] for seed in whole]
            gains = [fmean(r.gain or 0.0 for r in own) for own in runs]
            after, gain = (
                over_seeds(values)
                for values in ([fmean(r.after or 0.0 for r in own) for own in runs], gains)
            )
            assert after is not None
            assert gain is not None
            gaps = [own - other for own, other in zip(gains, first, strict=True)] if first else []
            level = Level(
                name=name, num_cells=len(cells), after=after, gain=gain, gap=over_seeds(gaps)
            )
            found.setdefault(axis, []).append(level)
            first = first or gains
    return found


def clear_best(cells: Sequence[CellSummary]) -> str | None:
    """The cell whose gain lies with its whole interval above all others'; None where there is none.

    Cells of one seed have no interval, so nothing is clear about them.
    """
    known = [(cell.gain, cell.name) for cell in cells if cell.gain is not None]
    if len(known) < 2 or not all(math.isfinite(gain.low) for gain, _ in known):
        return None
    best, name = max(known, key=lambda pair: pair[0].mean)
    return name if all(best.low > gain.high for gain, other in known if other != name) else None


def curves(plan: Plan) -> list[Curve]:
    """Training by step of every cell, over the seeds that are finished."""
    found = []
    for name in plan.cells:
        runs = [run for run in plan.runs if run.cell == name]
        records = [(read_run(r.folder), labels_used(r.folder)) for r in runs if _is_done(r)]
        if curve := _curve(name, plan.judge, records):
            found.append(curve)
    return found


def _is_done(run: PlannedRun) -> bool:
    return (run.folder / "summary.json").exists()


def _curve(
    name: str, judge: str, records: Sequence[tuple[RunRecord, dict[int, int]]]
) -> Curve | None:
    rewards = [_by_step(record, f"reward/{judge}/mean") for record, _ in records]
    lengths = [_by_step(record, "length/mean") for record, _ in records]
    counted = [labels for _, labels in records]
    # Steps that all seeds have: a mean over other seeds at every step would jump.
    common = [set(table) for table in (*rewards, *lengths, *counted)]
    steps = sorted(set.intersection(*common)) if common else []
    if not steps:
        return None
    columns = [[table[step] for table in rewards] for step in steps]
    return Curve(
        cell=name,
        steps=steps,
        labels=[round(fmean(table[step] for table in counted)) for step in steps],
        reward=[fmean(column) for column in columns],
        low=[min(column) for column in columns],
        high=[max(column) for column in columns],
        length=[fmean(table[step] for table in lengths) for step in steps],
    )


def _by_step(record: RunRecord, metric: str) -> dict[int, float]:
    steps, values = record.series(metric)
    return dict(zip(steps, values, strict=True))
