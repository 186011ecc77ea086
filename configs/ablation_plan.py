"""What an ablation will run: every stage and cell under every seed, with its whole configuration.

    base ⊕ overrides ⊕ cell ⊕ seed  ─▶  one RunConfig per cell and seed, in OUT/seed=S/CELL

Cells that are not comparable, or what they start from, are refused here.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.ablation import (
    HERE,
    STAGES,
    START,
    Ablation,
    StageSettings,
    expand,
    grid_levels,
    refuse_ours,
)
from configs.errors import ConfigError
from configs.load import load_config
from configs.paths import absolute_paths
from configs.schema import GROUP_WISE, OFFLINE, RunConfig


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One cell under one seed."""

    cell: str
    seed: int
    config: RunConfig

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.config.cluster.run_dir)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One of the ablation's own stages under one seed."""

    name: str
    config: RunConfig
    sample: int | None
    """Replies to draw to each prompt; None of a run that learns."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What the runs of some seeds begin with."""

    folder: Path
    seed: int
    needs: tuple[str, ...]
    """Which of `STAGES` something behind them reads."""
    stages: tuple[Stage, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that an ablation will run, in order."""

    out: Path
    judge: str
    show: tuple[str, ...]
    parallel: int
    cells: dict[str, tuple[str, ...]]
    """Name -> overrides."""
    levels: dict[str, dict[str, str]]
    """Of a grid: axis -> cell -> where on the axis it lies."""
    starts: tuple[tuple[Start | None, tuple[PlannedRun, ...]], ...]
    """Runs behind what they start from; None where the base names its own model."""
    world_overrides: tuple[str, ...]

    @property
    def runs(self) -> tuple[PlannedRun, ...]:
        """Every run."""
        return tuple(run for _, runs in self.starts for run in runs)


def make_plan(ablation: Ablation, file: Path, out: Path | None = None) -> Plan:
    """Every run with its checked configuration; raises `ConfigError` that names the cell."""
    # As configurations have it (`configs.paths`): without `..`, so that folders compare by name.
    folder = Path(os.path.abspath(out or ablation.out or Path("runs/ablate") / file.stem))
    world = Path(os.path.abspath(ablation.world.folder or folder))
    cells = expand(ablation)
    grouped: list[tuple[Start | None, tuple[PlannedRun, ...]]] = []
    shared = ablation.start == "world" and not ablation.world.seed_from_run
    for seeds in [ablation.seeds] if shared else [(seed,) for seed in ablation.seeds]:
        at = world / "start" if shared else world / f"seed={seeds[0]}"
        start = at if ablation.start == "world" else None
        runs = tuple(
            PlannedRun(
                cell=name,
                seed=seed,
                config=_config(ablation, file, name, overrides, seed, folder, start),
            )
            for seed in seeds
            for name, overrides in cells.items()
        )
        made = _start(ablation, file, at, seeds[0], runs) if start else None
        grouped.append((made, runs))
    _check_show(ablation, grouped[0][1])
    plan = Plan(
        out=folder,
        judge=_judge(ablation, grouped[0][1]),
        show=ablation.show,
        parallel=ablation.parallel,
        cells=cells,
        levels=grid_levels(ablation.grid, cells),
        starts=tuple(grouped),
        world_overrides=ablation.world.overrides,
    )
    _check_one_cluster(plan)
    return plan


def _config(
    ablation: Ablation,
    file: Path,
    cell: str,
    given: Sequence[str],
    seed: int,
    out: Path,
    start: Path | None,
) -> RunConfig:
    own = [f"cluster.run_dir={out / f'seed={seed}' / cell}", f"data.seed={seed}"]
    chosen = [*_begun(start), *ablation.overrides, *given, *own]
    config = _load(ablation.base, file, chosen, start, f"cell {cell}")
    if config.algorithm.name in OFFLINE:
        raise ConfigError(
            f"cell {cell}: algorithm.name={config.algorithm.name} has no replies to judge; cells "
            "are runs of `attune run`"
        )
    if config.cluster.metrics.loggers.jsonl is not None:
        raise ConfigError(
            f"cell {cell}: cluster.metrics.loggers.jsonl holds the rows of one run; set it to "
            "null, each run has its metrics.jsonl"
        )
    return config


def _start(
    ablation: Ablation, file: Path, folder: Path, seed: int, runs: Sequence[PlannedRun]
) -> Start:
    stages = tuple(
        Stage(
            name=name,
            config=_stage(ablation, file, name, settings, folder, seed),
            sample=settings.sample,
        )
        for name, settings in ablation.stages.items()
    )
    read = [run.config for run in runs] + [stage.config for stage in stages]
    return Start(folder=folder, seed=seed, needs=_needs(read, folder), stages=stages)


def _stage(
    ablation: Ablation, file: Path, name: str, settings: StageSettings, folder: Path, seed: int
) -> RunConfig:
    what = f"stage {name}"
    if not re.fullmatch(r"\w[\w.-]*", name) or name in ("world", *STAGES):
        raise ConfigError(f"{what}: it names a folder beside world, sft and reward_model")
    refuse_ours(what, settings.overrides)
    # The demo's data is for a base that is a run on prompts; another base names its own.
    begun = _begun(folder)[: 1 if settings.base else None]
    own = [f"cluster.run_dir={folder / name}", f"data.seed={seed}"]
    if settings.sample:  # kept with the configuration, so that another number is another stage
        own.append(f"data.samples_per_prompt={settings.sample}")
    shared = () if settings.base else ablation.overrides
    base = settings.base or ablation.base
    config = _load(base, file, [*begun, *shared, *settings.overrides, *own], folder, what)
    if settings.sample and config.algorithm.name in OFFLINE:
        raise ConfigError(
            f"{what}: algorithm.name={config.algorithm.name} samples nothing; leave out `sample`"
        )
    return config


def _begun(start: Path | None) -> list[str]:
    """Where a run under `start: world` finds what it starts from."""
    if start is None:
        return []
    world = start / "world"
    return [
        f"model.path={start / 'sft' / 'policy'}",
        f"data.train={world / 'prompts.parquet'}",
        f"data.validation={world / 'prompts_heldout.parquet'}",
    ]


def _load(
    base: str | dict[str, Any], file: Path, given: Sequence[str], start: Path | None, what: str
) -> RunConfig:
    """The configuration with absolute paths; raises `ConfigError` that says what it is of."""
    here = os.path.abspath(file.parent)
    overrides = [o.replace(START, str(start)).replace(HERE, here) for o in given]
    try:
        config = _read(base, file, overrides, start)
        rewards = config.feedback.rewards
        if start and "rm" in rewards and rewards["rm"].kind == "model":
            # Below what is given: a cell may still name another judge.
            judge = f"feedback.rewards.rm.path={start / 'reward_model' / 'policy'}"
            config = _read(base, file, [judge, *overrides], start)
    except ConfigError as error:
        raise ConfigError("; ".join(f"{what}: {e}" for e in str(error).splitlines())) from None
    return absolute_paths(config)


def _read(
    base: str | dict[str, Any], file: Path, overrides: Sequence[str], start: Path | None
) -> RunConfig:
    if isinstance(base, str):
        return load_config(file.parent / base, overrides)
    text = json.dumps(base).replace(START, str(start))
    text = text.replace(HERE, os.path.abspath(file.parent))
    return load_config(None, overrides, base=json.loads(text))


def _needs(configs: Sequence[RunConfig], start: Path) -> tuple[str, ...]:
    """SFT always; the reward model where something reads it."""
    folder = json.dumps(f"{start / 'reward_model'}/")[:-1]  # wherever a setting names it
    read = any(folder in config.model_dump_json() for config in configs)
    return STAGES if read else STAGES[:1]


def _judge(ablation: Ablation, runs: Sequence[PlannedRun]) -> str:
    named = [set(_judging(run.config)) for run in runs]
    if ablation.judge is None:
        judge = "gold" if all("gold" in names for names in named) else "total"
    else:
        judge = ablation.judge
    for run, names in zip(runs, named, strict=True):
        if judge not in names:
            raise ConfigError(
                f"cell {run.cell}: there is no reward {judge} to compare cells by (judge); it has "
                f"{', '.join(sorted(names)) or 'none that can judge fresh replies'}"
            )
        if judge == "total" and run.config.feedback != runs[0].config.feedback:
            raise ConfigError(
                f"cell {run.cell}: its rewards are not summed as in cell {runs[0].cell}, so their "
                "totals cannot be compared; name a reward of all cells as judge"
            )
    return judge


def _judging(config: RunConfig) -> list[str]:
    """Rewards that a single fresh reply has; as `cluster.evaluation` finds them in a run."""
    rewards = config.feedback.rewards
    apart = [name for name, r in rewards.items() if r.kind == "label" or r.kind in GROUP_WISE]
    alone = [name for name in rewards if name not in apart]
    summed = not config.feedback.one_shot and not any(rewards[name].weight for name in apart)
    return [*alone, "total"] if summed else alone


def _check_show(ablation: Ablation, runs: Sequence[PlannedRun]) -> None:
    for run in runs:
        names = _judging(run.config)
        for name in ablation.show:
            if name.partition("/")[0] not in names:
                raise ConfigError(
                    f"cell {run.cell}: there is no reward {name} to show; it has "
                    f"{', '.join(sorted(names)) or 'none that can judge fresh replies'}"
                )


def _check_one_cluster(plan: Plan) -> None:
    first = plan.runs[0]
    for run in plan.runs:
        for key in ("address", "device"):
            own, other = (getattr(r.config.cluster, key) for r in (run, first))
            if own != other:
                raise ConfigError(
                    f"cell {run.cell}: cluster.{key} is {own}, but {other} in cell {first.cell}: "
                    "all runs share one Ray"
                )
