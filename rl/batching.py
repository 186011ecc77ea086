"""Sequences of different lengths -> padded micro-batches that fit a token budget."""

from collections.abc import Sequence

import numpy as np
import torch

MULTIPLE = 8
"""Padded lengths are multiples of this: fewer distinct shapes, aligned rows."""


def padded_length(longest: int) -> int:
    """The next multiple of `MULTIPLE`."""
    return -(-longest // MULTIPLE) * MULTIPLE


def micro_batches(lengths: Sequence[int], rows: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Split `rows` into groups whose padded size stays within `max_tokens`.

    `lengths[row]` counts real tokens. Rows of similar length share a group, so little is padding;
    a row longer than the budget is a group of its own. Raises nothing; empty rows give no group.
    """
    groups: list[list[int]] = []
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        width = padded_length(lengths[groups[-1][0]]) if groups else 0
        if not groups or (len(groups[-1]) + 1) * width > max_tokens:
            groups.append([])
        groups[-1].append(row)
    return groups


def pad_tokens(sequences: Sequence[Sequence[int] | np.ndarray], pad_token_id: int) -> torch.Tensor:
    """Right-pad to one (B, T) int64 tensor."""
    width = padded_length(max(len(sequence) for sequence in sequences))
    padded = np.full((len(sequences), width), pad_token_id, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
    return torch.from_numpy(padded)


def place_after(
    starts: Sequence[int], values: Sequence[np.ndarray], width: int, dtype: torch.dtype
) -> torch.Tensor:
    """(B, T) of zeros with `values[b]` written from column `starts[b]` on."""
    placed = torch.zeros(len(values), width, dtype=dtype)
    for row, (start, value) in enumerate(zip(starts, values, strict=True)):
        placed[row, start : start + len(value)] = torch.as_tensor(np.array(value), dtype=dtype)
    return placed
