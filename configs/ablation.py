"""The file of `attune ablate`: a base, stages, cells or a grid, and seeds; checked by itself.

Everything is refused here and in `configs.ablation_plan`, before anything starts, in one line that
names the cell.
"""

import json
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from configs import strict_yaml
from configs.base import Positive, Section
from configs.errors import ConfigError

START = "{start}"
"""In overrides and in an inline base: the folder with the seed's world/, sft/ and reward_model/."""
HERE = "{here}"
"""In the same places: the folder of the ablation's file."""
STAGES = ("sft", "reward_model")
"""What is trained once for a seed; stages of the demo."""
WORDS = {
    "missing": "is required",
    "tuple_type": "should be a list",
    "too_short": "should have at least one entry",
}
"""What is wrong with a setting, by pydantic's name of the mistake; its own words for others."""
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
    """`section.key=value` for every cell, below the cell's own, and for stages without a `base`."""
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


def read_ablation(file: Path) -> Ablation:
    """The checked file; raises `ConfigError` with one line per mistake."""
    settings = strict_yaml.read_mapping(file)
    if "base" not in settings and settings.keys() & {"model", "algorithm", "extends"}:
        raise ConfigError(
            f"{file}: is a run, not an ablation; use `attune run`, or write a file with `base: "
            f"{file.name}`, start and cells"
        )
    errors = _unknown(settings, Ablation, "")
    world = settings.get("world")
    errors += _unknown(world, WorldSettings, "world.") if isinstance(world, dict) else []
    stages = settings.get("stages")
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        errors += _unknown(stage, StageSettings, f"stages.{name}.") if stage else []
    if errors:
        raise ConfigError("\n".join(f"{file}: {error}" for error in errors))
    try:
        ablation = Ablation.model_validate_json(json.dumps(settings), strict=True)
    except ValidationError as error:
        lines = {
            f"{file}: {_where(e['loc'])}: {WORDS.get(e['type'], e['msg'].lower())}"
            for e in error.errors()
        }
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


def grid_levels(
    grid: Mapping[str, Any] | None, cells: Mapping[str, Any]
) -> dict[str, dict[str, str]]:
    """Of a grid: axis -> cell -> where on the axis it lies."""
    if grid is None:
        return {}
    names = [
        list(values) if isinstance(values, Mapping) else [_part(key, value) for value in values]
        for key, values in grid.items()
    ]
    points = list(product(*names))  # in the order of `_grid`, as the cells are
    short = [key.rpartition(".")[2] for key in grid]
    return {
        key if short.count(short[axis]) > 1 else short[axis]: {
            cell: point[axis] for cell, point in zip(cells, points, strict=True)
        }
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
    refuse_ours(f"cell {name}", overrides)
    for override in overrides:
        if START in override and ablation.start == "none":
            raise ConfigError(f"cell {name}: {override}: {START} exists under `start: world` only")


def refuse_ours(what: str, overrides: Sequence[str]) -> None:
    """Refuse what the ablation decides for every run."""
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in OURS:
            raise ConfigError(
                f"{what}: {key} is what the ablation itself sets for each run; leave it out"
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
