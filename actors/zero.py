"""DeepSpeed ZeRO-3: engines that train or only answer, checkpoints, and Hugging Face export.

Everything that undoes or works around DeepSpeed's own habits is here, with the reason.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.partition_parameters import register_external_parameter
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from actors.modules import PolicyModule, ValueModule, load_network
from configs.cluster import LearnerPlacement
from configs.schema import OptimizerConfig

logger = logging.getLogger(__name__)

# On CPU, DeepSpeed would compile an all-reduce of its own at first use, for up to two minutes, and
# keep its buffers in shared memory: 66 MiB per rank that outlive the process, until the machine is
# full. ZeRO-3 never calls it.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

SHARD_BYTES = 5 * 2**30
"""A safetensors file of an export is closed once it holds this much."""


def zero_config(
    dtype: torch.dtype,
    *,
    max_grad_norm: float | None = None,
    placement: LearnerPlacement | None = None,
) -> dict[str, Any]:
    """DeepSpeed's JSON: ZeRO-3, one micro-batch per accumulation (the learner counts itself)."""
    zero: dict[str, Any] = {"stage": 3, "overlap_comm": torch.cuda.is_available()}
    if placement is not None:
        zero["stage3_param_persistence_threshold"] = placement.persistence_threshold
        if placement.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm or 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": dtype == torch.bfloat16},
        # In bfloat16 the 257th of equal micro-batches would add nothing to the sum of the others.
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 2**31,
    }


@contextmanager
def partitioned_loading(config: dict[str, Any]) -> Iterator[None]:
    """Inside, `from_pretrained` hands each rank only its shard of every parameter."""
    # transformers holds the object by weak reference: it must live for the whole block, and be
    # unset afterwards, or later unrelated models would come up partitioned too.
    handle = HfDeepSpeedConfig(config)
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del handle


def build_engine(
    kind: Literal["policy", "value"],
    path: str | Path,
    *,
    dtype: torch.dtype,
    optimizer: OptimizerConfig | None = None,
    placement: LearnerPlacement | None = None,
    gradient_checkpointing: bool = False,
    head_std: float | None = None,
) -> deepspeed.DeepSpeedEngine:
    """A ZeRO-3 engine around a policy or value network; without `optimizer` it only answers.

    Args:
        kind: which network to make of the folder.
        path: Hugging Face folder.
        dtype: of the forward pass; float32 masters are kept beside bfloat16.
        optimizer: AdamW settings; None for a frozen model.
        placement: ZeRO settings of the learner.
        gradient_checkpointing: recompute activations in the backward pass.
        head_std: standard deviation of a value head that the folder lacks; 0 for a zero head, None
            where a missing head is an error.
    """
    training = optimizer is not None
    config = zero_config(
        dtype,
        max_grad_norm=optimizer.max_grad_norm if optimizer else None,
        placement=placement,
    )
    with partitioned_loading(config):
        network, head_is_new = load_network(
            kind, path, dtype=dtype, gradient_checkpointing=gradient_checkpointing
        )
    if head_is_new:
        if head_std is None:
            raise ValueError(
                f"{path}: no value head in the weights; train one (attune reward-model)"
            )
        _initialise_head(network, head_std)
    network.requires_grad_(training)
    if isinstance(network, PolicyModule):
        for parameter in network.head.parameters_read():
            register_external_parameter(network.head, parameter)
    engine, *_ = deepspeed.initialize(
        model=network,
        optimizer=_adamw(network, optimizer, placement) if optimizer else None,
        config=config,
    )
    engine.train(training)
    return engine


def _initialise_head(network: torch.nn.Module, std: float) -> None:
    """Draw the value head on rank 0 and share it; N(0, std), bias 0 (arXiv 2403.17031)."""
    parameters = list(network.model.score.parameters())  # pyright: ignore
    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0):
        if dist.get_rank() == 0:
            generator = torch.Generator().manual_seed(0)
            for parameter in parameters:
                drawn = torch.randn(parameter.shape, generator=generator) * std
                drawn = drawn if parameter.dim() > 1 else torch.zeros_like(drawn)
                parameter.data.copy_(drawn)


def _adamw(
    network: torch.nn.Module, settings: OptimizerConfig, placement: LearnerPlacement | None
) -> torch.optim.Optimizer:
    """AdamW without weight decay on norms and biases."""
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]

    def decays(name: str, parameter: Any) -> bool:
        return len(getattr(parameter, "ds_shape", parameter.shape)) > 1 and "norm" not in name

    groups = [
        {"params": [p for n, p in named if decays(n, p)], "weight_decay": settings.weight_decay},
        {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if placement is not None and placement.offload_optimizer:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(
            groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps
        )
    # torch's own AdamW: DeepSpeed's fused one would compile for a minute and a half at first use.
    return torch.optim.AdamW(
        groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps
    )


def forget_moments(engine: deepspeed.DeepSpeedEngine) -> None:
    """Set AdamW's moments and step counts back to 0; on every rank, for its own shard."""
    optimizer: Any = engine.optimizer.optimizer  # pyright: ignore
    for state in optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq", "step"):
            if isinstance(state[name], torch.Tensor):
                state[name].zero_()
            else:
                state[name] = 0


def save_checkpoint(engine: deepspeed.DeepSpeedEngine, folder: Path) -> None:
    """Write every rank's shard under `folder`; a collective."""
    engine.save_checkpoint(str(folder), tag="zero", exclude_frozen_parameters=False)


def load_checkpoint(engine: deepspeed.DeepSpeedEngine, folder: Path, work: Path) -> None:
    """Load a checkpoint written at any world size; a collective.

    ZeRO shards only fit the world size that wrote them. At another one, the first rank of each node
    turns them into DeepSpeed's universal format under its `work` first, for all ranks of the node.
    """
    written_by = len(list((folder / "zero").glob("*_optim_states.pt")))
    if written_by == dist.get_world_size():
        engine.load_checkpoint(str(folder), tag="zero")
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank == 0:
        _to_universal(folder / "zero", work / "universal")
    works = [work] * dist.get_world_size()
    dist.all_gather_object(works, work)  # waits for the conversion, too
    work = works[dist.get_rank() - local_rank]  # ranks are numbered node by node
    _load_universal(engine, work)


def _load_universal(engine: deepspeed.DeepSpeedEngine, folder: Path) -> None:
    """Load DeepSpeed's universal format, and give each group of parameters its own state back.

    DeepSpeed 0.19 leaves all groups with one step counter, which AdamW then counts up once for each
    of them, and with the settings of the first, so norms would decay.
    """
    optimizer: Any = engine.optimizer.optimizer  # pyright: ignore
    own = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    settings = engine._config
    assert settings is not None
    settings.load_universal_checkpoint = True
    engine.load_checkpoint(str(folder), tag="universal")
    settings.load_universal_checkpoint = False
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)
    for state in optimizer.state.values():
        state["step"] = deepcopy(state["step"])


CONVERSION_S = 1800.0
"""Longest conversion of a checkpoint to another number of ranks."""


def _to_universal(source: Path, target: Path) -> None:
    """Convert with DeepSpeed's own tool, in a process of its own: it prints, and forks workers."""
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(source), "--output_folder", str(target)]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=CONVERSION_S
    )
    if result.returncode != 0:
        last = (result.stderr.strip() or result.stdout.strip()).splitlines()[-1:]
        raise RuntimeError(f"{source}: converting to a universal checkpoint failed: {last}")


def gathered_groups(
    model: PreTrainedModel, groups: list[list[str]]
) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """Full tensors of each group of parameter names in turn; a collective, on every rank.

    A group is only valid until the next one is asked for: copy what must last.
    """
    parameters = dict(model.named_parameters())
    for names in groups:
        members = [parameters[name] for name in names]
        with deepspeed.zero.GatheredParameters(members):
            yield [(name, parameters[name].data) for name in names]


def export(
    model: PreTrainedModel, groups: list[list[str]], folder: Path, dtype: torch.dtype
) -> None:
    """Write the model as a Hugging Face folder of safetensors; a collective, rank 0 writes.

    The folder is built aside and renamed, so a half-written one never carries the final name.
    """
    is_writer = dist.get_rank() == 0
    partial = folder.with_name(folder.name + ".partial")
    if is_writer:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    shard: dict[str, torch.Tensor] = {}
    files: list[list[str]] = []
    for group in gathered_groups(model, groups):
        if not is_writer:
            continue
        shard |= {name: tensor.to("cpu", dtype, copy=True) for name, tensor in group}
        if sum(tensor.nbytes for tensor in shard.values()) >= SHARD_BYTES:
            _write_shard(partial, shard, files)
    if is_writer:
        if shard:
            _write_shard(partial, shard, files)
        _finish_export(model, partial, folder, files)
    dist.barrier()


def _write_shard(folder: Path, shard: dict[str, torch.Tensor], files: list[list[str]]) -> None:
    contiguous = {name: tensor.contiguous() for name, tensor in shard.items()}
    save_file(contiguous, folder / f"part-{len(files)}.safetensors", metadata={"format": "pt"})
    files.append(list(shard))
    shard.clear()


def _finish_export(
    model: PreTrainedModel, partial: Path, folder: Path, files: list[list[str]]
) -> None:
    """Give the parts their final names, with an index where there are several."""
    total = len(files)
    index: dict[str, str] = {}
    for number, names in enumerate(files):
        name = (
            "model.safetensors"
            if total == 1
            else f"model-{number + 1:05d}-of-{total:05d}.safetensors"
        )
        (partial / f"part-{number}.safetensors").rename(partial / name)
        index |= dict.fromkeys(names, name)
    if total > 1:
        text = json.dumps({"metadata": {}, "weight_map": index}, indent=1)
        (partial / "model.safetensors.index.json").write_text(text)
    config = model.config
    config.architectures = [type(model).__name__]
    config.save_pretrained(partial)
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def inner_model(engine: deepspeed.DeepSpeedEngine) -> PreTrainedModel:
    """The Hugging Face model inside an engine."""
    network = engine.module
    assert isinstance(network, PolicyModule | ValueModule)
    return network.model
