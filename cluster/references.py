"""Where the reference stands: a folder that stays, or that moves with the policy.

A moved reference is a model folder under `references/` of the run, named after the step it was made
at. So a run that is resumed, or a scoring process that died, finds the reference it had.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from configs.schema import RunConfig


def has_reference(config: RunConfig) -> bool:
    """Whether anything reads the reference's log-probs."""
    return config.model.reference_update != "none"


def reference_folder(config: RunConfig, step: int) -> Path:
    """Of the reference that was made after a step."""
    return Path(config.cluster.run_dir) / "references" / f"step={step:06d}"


def latest_reference(config: RunConfig, step: int | None = None) -> str:
    """The reference that holds after a step, the newest where None; at first, the run's own."""
    folders = sorted((Path(config.cluster.run_dir) / "references").glob("step=" + "[0-9]" * 6))
    made = [f for f in folders if step is None or int(f.name.removeprefix("step=")) <= step]
    return str(made[-1]) if made else config.model.reference or config.model.path


def discard_references(config: RunConfig, step: int) -> bool:
    """Remove references made after a step, to which a run has gone back; whether there were any."""
    folders = (Path(config.cluster.run_dir) / "references").glob("step=*")
    later = [f for f in folders if int(f.name.removeprefix("step=").partition(".")[0]) > step]
    for folder in later:
        shutil.rmtree(folder)
    return bool(later)


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


def sync_interval(config: RunConfig) -> int:
    """Learner steps between two syncs of the engines.

    With stored replies alone, engines only answer held-out prompts at the end; with `data.sliced`,
    an iteration samples from the policy that it began with.
    """
    if config.data.source == "stored":
        return config.algorithm.num_steps
    return (config.algorithm.iteration_steps or 1) if config.data.sliced else 1


def mix_folders(policy: Path, reference: str, share: float) -> None:
    """Make the weights of `policy` share * policy + (1 - share) * reference, tensor by tensor."""
    for file in sorted(policy.glob("*.safetensors")):
        mixed = {}
        with safe_open(file, "pt") as own:
            for name in own.keys():  # noqa: SIM118 - not a mapping
                old = _tensor(Path(reference), name)
                new = own.get_tensor(name)
                mixed[name] = old.float().lerp(new.float(), share).to(new.dtype)
        save_file(mixed, file, metadata={"format": "pt"})


def _tensor(folder: Path, name: str) -> torch.Tensor:
    index = folder / "model.safetensors.index.json"
    file = "model.safetensors"
    if index.exists():
        file = json.loads(index.read_text())["weight_map"][name]
    with safe_open(folder / file, "pt") as tensors:
        return tensors.get_tensor(name)
