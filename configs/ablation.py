"""The file of `attune ablate`: one base run, cells that change it, seeds; checked and expanded.

    base ⊕ overrides ⊕ cell ⊕ seed  ─▶  one RunConfig per cell and seed, in OUT/seed=S/CELL

Everything is refused here, before anything starts, in one line that names the cell.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from configs import strict_yaml
from configs.errors import ConfigError
from configs.load import load_config
from configs.paths import absolute_paths
from configs.schema import GROUP_WISE, OFFLINE, Positive, RunConfig, Section

START = "{start}"
"""In overrides and in an inline base: the folder with the seed's world/, sft/ and reward_model/."""
HERE = "{here}"
"""In the same places: the folder of the ablation's file."""
STAGES = ("sft", "reward_model")
"""What is trained once for a seed; stages of the demo."""
OURS = ("cluster.run_dir", "data.seed")
"""Settings that the ablation gives each run."""


class WorldSettings(Section):
    """The built-in world that the runs start from."""

    folder: str | None = None
    """Where worlds and what is trained on them are kept, for several ablations to share; the
    ablation's own folder where empty."""
    seed_from_run: bool = True
    """A world, an SFT policy and a reward model per seed; else those of the first seed for all."""
    overrides: tuple[str, ...] = ()
    """`sft.section.key=value` and `reward_model.section.key=value`, as `attune demo` takes them."""


class StageSettings(Section):
    """A run that is made once a seed, behind sft and reward_model, for cells to start from.

    Its folder is `{start}/NAME`; a cell names `{start}/NAME/policy` as a model or a judge.
    """

    base: str | dict[str, Any] | None = None
    """YAML of the run, which then names its own data; the ablation's base where empty."""
    overrides: tuple[str, ...] = ()
    sample: Positive | None = None
    """Draw that many replies to each prompt of `data.train` and judge them, in place of learning:
    `{start}/NAME/replies.parquet`."""


class Ablation(Section):
    """What is compared with what."""

    base: str | dict[str, Any]
    """YAML of a run, relative to this file, or its sections written out here."""
    start: Literal["world", "none"]
    """world: a world, an SFT policy and a reward model are made first; the runs start from them and
    the reward `rm` is that model. none: the base names a model and data of your own."""
    world: WorldSettings = WorldSettings()
    stages: dict[str, StageSettings] = Field(default_factory=dict)
    """Under `start: world`, in this order; a later one may read an earlier one."""
    overrides: tuple[str, ...] = ()
    """`section.key=value` for every cell, below the cell's own."""
    cells: dict[str, tuple[str, ...] | None] | None = None
    """Name -> overrides."""
    grid: (
        dict[str, tuple[str | bool | int | float | None, ...] | dict[str, tuple[str, ...]]] | None
    ) = None
    """In place of `cells`, every combination is a cell: a dotted setting -> its values, or any word
    -> name -> overrides."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)] = (0,)
    """Of data order and sampling, and of the world where `world.seed_from_run`."""
    out: str | None = None
    """Folder of all runs and of the results; runs/ablate/NAME where empty."""
    judge: str | None = None
    """Reward by which cells are compared; `gold` where every cell has it, else `total`."""
    show: tuple[str, ...] = ()
    """More rewards of all cells to report, parts such as `gold/true` included."""
    parallel: Positive = 1
    """Runs at a time. They share the machine: more than one pays on many cores or GPUs only."""


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


def read_ablation(file: Path) -> Ablation:
    """The checked file; raises `ConfigError` with one line per mistake."""
    settings = strict_yaml.read_mapping(file)
    errors = _unknown(settings, Ablation, "")
    world = settings.get("world")
    errors += _unknown(world, WorldSettings, "world.") if isinstance(world, dict) else []
    if errors:
        raise ConfigError("\n".join(f"{file}: {error}" for error in errors))
    try:
        ablation = Ablation.model_validate_json(json.dumps(settings), strict=True)
    except ValidationError as error:
        lines = {f"{file}: {_where(e['loc'])}: {e['msg'].lower()}" for e in error.errors()}
        raise ConfigError("\n".join(sorted(lines))) from error
    except TypeError as error:  # a date or the like, which JSON has no word for
        raise ConfigError(f"{file}: {error}; put it in quotes") from error
    if (ablation.cells is None) == (ablation.grid is None):
        raise ConfigError(f"{file}: give either cells or grid, and not both")
    if len(set(ablation.seeds)) < len(ablation.seeds):
        raise ConfigError(f"{file}: seeds holds one seed twice: {list(ablation.seeds)}")
    if ablation.stages and ablation.start != "world":
        raise ConfigError(f"{file}: stages are made on the built-in world; write start: world")
    for override in ablation.world.overrides:
        if not override.startswith(tuple(f"{stage}." for stage in STAGES)):
            raise ConfigError(
                f"{file}: world.overrides: {override!r} names no stage; write sft.section.key=value"
            )
    return ablation


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
        levels=_levels(ablation.grid, cells),
        starts=tuple(grouped),
        world_overrides=ablation.world.overrides,
    )
    _check_one_cluster(plan)
    return plan


def expand(ablation: Ablation) -> dict[str, tuple[str, ...]]:
    """Name -> overrides of every cell; names of a grid are made of its values."""
    if ablation.grid is not None:
        pairs = _grid(ablation.grid)
    else:
        pairs = [(name, given or ()) for name, given in (ablation.cells or {}).items()]
    if not pairs:
        raise ConfigError("there is no cell: write a name and its overrides under cells")
    cells: dict[str, tuple[str, ...]] = {}
    for name, overrides in pairs:
        _check_cell(name, [*ablation.overrides, *overrides], ablation)
        if name in cells:
            raise ConfigError(f"cell {name}: two points of the grid have this name; use cells")
        cells[name] = tuple(overrides)
    return cells


def _grid(
    grid: Mapping[str, Sequence[Any] | Mapping[str, Sequence[str]]],
) -> list[tuple[str, tuple[str, ...]]]:
    axes = []
    for key, values in grid.items():
        if not values:
            raise ConfigError(f"grid.{key} has no values; give a list of them")
        if isinstance(values, Mapping):
            axes.append([(name, tuple(overrides)) for name, overrides in values.items()])
        else:
            axes.append([(_part(key, value), (f"{key}={_text(value)}",)) for value in values])
    return [
        (
            ",".join(name for name, _ in point),
            tuple(override for _, overrides in point for override in overrides),
        )
        for point in product(*axes)
    ]


def _levels(grid: Mapping[str, Any] | None, cells: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    if grid is None:
        return {}
    names = [
        list(values) if isinstance(values, Mapping) else [_part(key, value) for value in values]
        for key, values in grid.items()
    ]
    points = list(product(*names))  # in the order of `_grid`, as the cells are
    return {
        key.rpartition(".")[2]: {c: point[axis] for c, point in zip(cells, points, strict=True)}
        for axis, key in enumerate(grid)
    }


def _part(key: str, value: Any) -> str:
    """`ppo` of a text; `coef=0.1` of a number, which alone would say little."""
    text = re.sub(r"[^\w.+-]", "-", value if isinstance(value, str) else json.dumps(value))
    return text if isinstance(value, str) else f"{key.rpartition('.')[2]}={text}"


def _text(value: Any) -> str:
    """The value of an override, in quotes where YAML would take the bare text for another thing."""
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z/][\w./+-]*", value)
    return value if plain and strict_yaml.parse(value, "grid") == value else json.dumps(value)


def _check_cell(name: str, overrides: Sequence[str], ablation: Ablation) -> None:
    if not re.fullmatch(r"[\w][\w.=,+-]*", name):
        raise ConfigError(
            f"cell {name!r}: a cell names a folder; use letters, digits and . = , + - _"
        )
    if ablation.start == "world" and name in ("world", *STAGES, *ablation.stages):
        raise ConfigError(f"cell {name}: a folder of the world has this name; call it differently")
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in OURS:
            raise ConfigError(
                f"cell {name}: {key} is what the ablation itself sets for each run; leave it out"
            )
        if START in override and ablation.start == "none":
            raise ConfigError(f"cell {name}: {override}: {START} exists under `start: world` only")


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
    # The demo's data is for a base that is a run on prompts; another base names its own.
    begun = _begun(folder)[: 1 if settings.base else None]
    own = [f"cluster.run_dir={folder / name}", f"data.seed={seed}"]
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


def _unknown(layer: Mapping[Any, Any], section: type[Section], prefix: str) -> list[str]:
    """One line per key that does not exist, with the nearest that does."""
    names = list(section.model_fields)
    lines = []
    for key in (str(key) for key in layer if key not in names):
        near = get_close_matches(key, names, n=1)
        hint = f"did you mean {prefix}{near[0]}?" if near else f"there are {', '.join(names)}"
        lines.append(f"{prefix}{key} is not a setting of an ablation; {hint}")
    return lines


def _where(loc: Sequence[str | int]) -> str:
    """The setting, without pydantic's names of a union's members."""
    return ".".join(str(part) for part in loc[:2] if part not in ("str", "dict[str,any]"))
