"""Where the reference stands: a folder that stays, or that moves with the policy.

A moved reference is a model folder under `references/` of the run, named after the step it was made
at. So a run that is resumed, or a scoring process that died, finds the reference it had.
"""

from pathlib import Path

from configs.schema import RunConfig


def has_reference(config: RunConfig) -> bool:
    """Whether anything reads the reference's log-probs."""
    return config.model.reference_update != "none"


def reference_folder(config: RunConfig, step: int) -> Path:
    """Of the reference that was made after a step."""
    return Path(config.cluster.run_dir) / "references" / f"step={step:06d}"


def latest_reference(config: RunConfig, step: int | None = None) -> str:
    """The reference that holds after a step, the newest where None; the run's first if none was made."""
    folders = sorted((Path(config.cluster.run_dir) / "references").glob("step=" + "[0-9]" * 6))
    made = [f for f in folders if step is None or int(f.name.removeprefix("step=")) <= step]
    return str(made[-1]) if made else config.model.reference or config.model.path


def reference_moves(config: RunConfig, step: int) -> bool:
    """Whether the reference is made anew after this step."""
    model, algorithm = config.model, config.algorithm
    match model.reference_update:
        case "reset":
            interval = algorithm.iteration_steps
        case "ema":
            interval = model.reference_interval
        case _:
            return False
    return interval is not None and step % interval == 0 and step < algorithm.num_steps
