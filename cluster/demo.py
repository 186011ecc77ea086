"""The demo: one command from an untrained tiny model to an aligned one, on the built-in world."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from cluster.exits import failing_with_1
from cluster.headline import headline
from cluster.inputs import prepare_run_dir, read_inputs
from cluster.loggers.checks import check_loggers
from cluster.progress import RunProgress
from cluster.report import write_demo_report
from configs.errors import ConfigError
from configs.load import load_config
from configs.paths import absolute_paths
from configs.schema import RunConfig

logger = logging.getLogger(__name__)

BEGUN = "demo.json"
"""What a demo was asked for, beside its stages; written once its world is."""
RECIPES = Path(__file__).parent.parent / "configs" / "demo"
STAGES = {
    "sft": "1/3 learning to write from demonstrations",
    "reward_model": "2/3 learning to judge from noisy pairs",
    "run": "3/3 learning from its own judged replies",
}


def run_demo(
    overrides: Sequence[str], out: Path | None, seed: int, *, resume: bool, debug: bool
) -> None:
    """All three stages on one Ray, then the report; says in one sentence what was learned.

    With `resume`, the demo in `out` goes on: finished stages stand, a broken-off one continues.
    """
    if resume:
        folder, overrides, seed = _begun(out, overrides)
    else:
        folder = out or free_folder(Path("runs/demo"))
        if (folder / BEGUN).exists():
            raise ConfigError(f"--out: {folder} already holds a demo; give --resume or another one")
    configs = {stage: stage_config(stage, overrides, folder, seed) for stage in STAGES}
    for config in configs.values():
        check_loggers(config)
    if not resume:
        write_world_and_model(folder / "world", seed)
        (folder / BEGUN).write_text(json.dumps({"overrides": list(overrides), "seed": seed}))
    hint = f"attune demo --out {folder} --resume"
    with failing_with_1(folder / "run", hint, debug):
        from cluster.runtime import ray_session

        with ray_session(configs["run"], root=folder) as watch:
            links = watch.links()
            for stage, config in configs.items():
                if not (folder / stage / "summary.json").exists():
                    with failing_with_1(folder / stage, hint, debug):
                        _run_stage(stage, config, links)
                        links = {}
    report = write_demo_report(folder)
    typer.echo(headline(folder / "run"))
    typer.echo(f"report: {report}   policy: {folder / 'run' / 'policy'}")


def _begun(out: Path | None, overrides: Sequence[str]) -> tuple[Path, list[str], int]:
    """Folder, overrides and seed of the demo in `out`."""
    if out is None:
        raise ConfigError("--resume needs the folder of the demo: give --out")
    file = out / BEGUN
    if not file.exists():
        raise ConfigError(f"--out: {out} holds no demo to resume")
    begun = json.loads(file.read_text())
    return out, [*begun["overrides"], *overrides], begun["seed"]


def _run_stage(stage: str, config: RunConfig, links: Mapping[str, str]) -> None:
    """`links`: where the demo can be watched, to be told once."""
    from cluster.run import run

    resume = Path(config.cluster.run_dir, "config.yaml").exists()
    prepare_run_dir(config, resume=resume)
    inputs = read_inputs(config)
    steps, run_dir = config.algorithm.num_steps, config.cluster.run_dir
    with RunProgress(steps, STAGES[stage], run_dir=run_dir) as progress:
        progress.links(**links)
        run(config, inputs, progress)


def stage_config(stage: str, overrides: Sequence[str], folder: Path, seed: int) -> RunConfig:
    """The recipe of a stage with the demo's paths and the overrides that are meant for it."""
    paths = {
        "sft": ["model.path=world/model", "data.train=world/demonstrations.parquet"],
        "reward_model": ["model.path=sft/policy", "data.train=world/pairs.parquet"],
        "run": [
            "model.path=sft/policy",
            "data.train=world/prompts.parquet",
            "data.validation=world/prompts_heldout.parquet",
            "feedback.rewards.rm.path=reward_model/policy",
        ],
    }
    given = [item.replace("=", f"={folder}/", 1) for item in paths[stage]]
    given += [f"cluster.run_dir={folder / stage}", f"data.seed={seed}"]
    prefixes = tuple(f"{name}." for name in STAGES if name != "run")
    for override in overrides:
        if override.startswith(f"{stage}."):
            given.append(override.removeprefix(f"{stage}."))
        elif stage == "run" and not override.startswith(prefixes):
            given.append(override)
    return absolute_paths(load_config(RECIPES / f"{stage}.yaml", given))


def free_folder(wanted: Path) -> Path:
    """`wanted`, or with the first number behind it that no folder has."""
    number, folder = 1, wanted
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def write_world_and_model(folder: Path, seed: int) -> None:
    """The world's data as Parquet and an untrained policy with its tokenizer."""
    from rl.world.generate import write_world
    from rl.world.model import write_model

    write_world(folder, seed=seed)
    write_model(folder / "model", seed=seed)
