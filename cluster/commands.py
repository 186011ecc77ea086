"""What the commands that train do: check, plan, run to the end, say what came of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cluster.exits import failing_with_1, guarded
from cluster.loggers.checks import check_loggers
from cluster.run_folder import (
    check_begun,
    check_is_run,
    check_own_folder,
    check_run_folder,
    refuse_redacted,
)
from configs.errors import ConfigError
from configs.load import load_config
from configs.paths import absolute_paths, missing_paths

if TYPE_CHECKING:
    from configs.schema import RunConfig

COMMANDS = {"sft": "sft", "reward_model": "reward-model"}
"""Algorithms that have a command of their own; `attune run` takes the others."""


def train(
    method: str | None,
    path: Path,
    overrides: list[str] | None,
    *,
    resume: bool,
    dry_run: bool,
    debug: bool,
) -> None:
    """Run the method of a configuration to its end, or print its plan.

    `method`: `sft` or `reward_model` for the commands that train only that.
    """
    with guarded(debug):
        base = {"algorithm": {"name": method}} if method else None
        config = load(path, overrides, base)
        _check_method(method, config)
        if resume and path.is_dir():
            check_own_folder(config, path)
        if dry_run:
            typer.echo(_plan(config))
            _look_for_files(config, resume=resume)
            return
        _run(absolute_paths(config), resume=resume, debug=debug)


def load(
    path: Path, overrides: list[str] | None, base: dict[str, Any] | None = None
) -> "RunConfig":
    """The configuration of a YAML file, or of a run folder."""
    file = path / "config.yaml" if path.is_dir() else path
    if path.is_dir():
        check_is_run(path)
    config = load_config(file, overrides or [], base=base)
    refuse_redacted(config)
    return config


def _check_method(method: str | None, config: "RunConfig") -> None:
    """Each command trains what its name says."""
    name = config.algorithm.name
    wanted = COMMANDS.get(name, "run")
    if wanted != COMMANDS.get(method or "", "run"):
        raise ValueError(f"algorithm.name is {name}: use `attune {wanted}` for it")


def _plan(config: "RunConfig") -> str:
    """The derived plan of --dry-run; raises ValueError where the run cannot fit."""
    from configs.machine import available_cores, available_memory, smallest_gpu
    from configs.plan import derive, render
    from rl.folders import check_model_folder

    folder = Path(config.model.path)
    model = check_model_folder(folder, field="model.path") if folder.exists() else None
    gpu = smallest_gpu() if config.cluster.address is None else None
    memory, cores = available_memory(), available_cores()
    plan = derive(config, model, memory, cores=cores, one_gpu_gib=gpu)
    if plan.refusal:
        typer.echo(render(plan), err=True)
        raise ValueError(plan.refusal)
    return render(plan)


def _look_for_files(config: "RunConfig", *, resume: bool) -> None:
    """Refuse what would not be found; of a run for elsewhere, say what is not here.

    What the files hold is read by the run itself: it takes longer than a look.
    """
    cluster = config.cluster
    is_here = cluster.address is None and cluster.kubernetes is None and cluster.device == "cpu"
    for name, path in missing_paths(config):
        if is_here:
            raise ConfigError(f"{name}: {path} does not exist; give a file or folder that does")
        typer.echo(f"warning: {name}: {path} is not on this machine", err=True)
    try:
        check_loggers(config)
    except ConfigError as error:
        if is_here:
            raise
        typer.echo(f"warning: on this machine, {error}", err=True)
    check_run_folder(config)
    check_begun(absolute_paths(config), resume=resume)


def _run(config: "RunConfig", *, resume: bool, debug: bool) -> None:
    from cluster.headline import headline
    from cluster.inputs import prepare_run_dir, read_inputs
    from cluster.joining import take_over

    inputs = read_inputs(config)
    check_run_folder(config)
    if config.cluster.address is not None:
        from cluster.address import check_address

        check_address(config.cluster.address)
    take_over(config.cluster.run_dir)
    folder = prepare_run_dir(config, resume=resume)
    command = COMMANDS.get(config.algorithm.name, "run")
    with failing_with_1(folder, f"attune {command} {folder} --resume", debug):
        from cluster.progress import RunProgress
        from cluster.run import run as run_to_end
        from cluster.runtime import ray_session

        with (
            ray_session(config) as watch,
            RunProgress(
                config.algorithm.num_steps, config.algorithm.name, run_dir=folder
            ) as progress,
        ):
            progress.links(**watch.links())
            run_to_end(config, inputs, progress)
    typer.echo(headline(folder))
    made = "policy" if config.feedback.mixture is None else "models"
    typer.echo(f"report: {folder / 'report.html'}   {made}: {folder / made}")
