"""An engine worker's end of weight transfer in a process of its own, around a plain module.

Every function is a task for `Ranks`. The process keeps one receiver between tasks.
"""

import os
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8)
SHAPES = ((), (0,), (1,), (3, 5, 7), (2, 17), (4096,))
"""A scalar, nothing, odd sizes, and one tensor that is larger than a bucket of these tests."""

_receivers: list[Any] = []


class Weights(nn.Module):
    """A parameter of every dtype and shape; takes new ones the way vLLM's models do."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.loads = 0
        self.dies_at_load: int | None = None
        for dtype in DTYPES:
            for number, shape in enumerate(SHAPES):
                values = (torch.rand(shape, generator=generator) * 200).to(dtype)
                name = f"{str(dtype).removeprefix('torch.')}_{number}"
                self.register_parameter(name, nn.Parameter(values, requires_grad=False))

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Copy each tensor in, as it comes."""
        self.loads += 1
        if self.loads == self.dies_at_load:
            os._exit(1)
        own, seen = dict(self.named_parameters()), set()
        for name, tensor in weights:
            assert own[name].dtype == tensor.dtype
            assert own[name].shape == tensor.shape
            own[name].copy_(tensor)
            seen.add(name)
        return seen


def as_arrays(module: nn.Module) -> dict[str, np.ndarray]:
    """All parameters, exactly: as bytes."""
    return {
        name: parameter.detach().reshape(-1).view(torch.uint8).numpy().copy()
        for name, parameter in module.named_parameters()
        if parameter.numel()
    }


def ready() -> None:
    """Answers once vLLM is imported."""
    import actors.gloo_transport  # noqa: F401 - for its import alone


def join(info: dict[str, Any], dies_at_load: int | None = None) -> None:
    """Build a receiver and join the sender's group as the engine's only worker."""
    from actors.gloo_transport import GlooWeightTransferEngine

    # The constructor wants a whole vLLM configuration; this end reads no more of it than this.
    receiver = GlooWeightTransferEngine.__new__(GlooWeightTransferEngine)
    receiver.parallel_config = SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)  # pyright: ignore[reportAttributeAccessIssue]
    receiver.model = Weights(seed=1)
    receiver.model.dies_at_load = dies_at_load
    receiver.init_transfer_engine(receiver.parse_init_info(info))
    _receivers[:] = [receiver]


def receive(info: dict[str, Any]) -> dict[str, Any]:
    """Take one update; what the model holds then, and the fingerprints of what came."""
    receiver = _receivers[0]
    receiver.receive_weights(receiver.parse_update_info(info))
    model = receiver.model
    return {"weights": as_arrays(model), "received": receiver.received, "loads": model.loads}


def leave() -> None:
    """Leave the group without a word."""
    _receivers[0].shutdown()


def wait_for_a_silent_sender() -> str:
    """Wait for an update that never comes; the error."""
    try:
        receive({"names": ["int64_2"], "dtype_names": ["int64"], "shapes": [[1]]})
    except RuntimeError as error:
        return str(error)
    return ""
