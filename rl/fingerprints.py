"""Fingerprints of tensors: cheap numbers that tell which of two weight copies differ, and where."""

from collections.abc import Mapping
from itertools import groupby

import torch

Fingerprint = tuple[float, float]
"""Sum and sum of absolute values, in float64."""


def fingerprint(tensor: torch.Tensor) -> Fingerprint:
    """Of one tensor of any shape and real dtype."""
    flat = tensor.detach().reshape(-1)
    if not flat.is_floating_point():
        flat = flat.double()
    # Accumulates in float64 without a float64 copy of what may be the largest tensor of the model.
    return (
        float(flat.sum(dtype=torch.float64)),
        float(torch.linalg.vector_norm(flat, 1, dtype=torch.float64)),
    )


def differing(
    left: Mapping[str, Fingerprint], right: Mapping[str, Fingerprint], rtol: float = 1e-9
) -> list[str]:
    """Names whose fingerprints disagree or that one side lacks, in the order of `left`."""
    names = [*left, *(name for name in right if name not in left)]
    return [
        name
        for name in names
        if name not in left or name not in right or not _close(left[name], right[name], rtol)
    ]


def _close(left: Fingerprint, right: Fingerprint, rtol: float) -> bool:
    scale = max(left[1], right[1], 1e-300)
    return all(abs(a - b) <= rtol * scale for a, b in zip(left, right, strict=True))


def tensor_group(name: str) -> str:
    """The decoder layer a tensor belongs to (`model.layers.3`), or its module outside of them."""
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: index + 1])
    return ".".join(parts[:-1])


def tensor_groups(names: list[str]) -> list[list[str]]:
    """Consecutive names of one group together: what is gathered and sent at a time."""
    return [list(group) for _, group in groupby(names, key=tensor_group)]
