"""The critic's loss, and how much of the returns its values explain."""

import torch
from torch import Tensor

from rl.masking import mean_and_variance, moment_sums


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """(B, T): half the squared error, or where it is larger that of the clipped value.

    A value that moved by more than `clip` from `old_values` towards its return earns nothing for
    the surplus. None switches clipping off. (Detail of the original PPO code, arXiv 2403.17031.)
    """
    error = (values - returns).square()
    if clip is not None:
        clipped = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (clipped - returns).square())
    return error / 2


@torch.no_grad()
def value_sums(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """(5,) float64, to be added over ranks: count, returns, returns², errors, errors²."""
    target, error = moment_sums(returns, mask), moment_sums(returns - values, mask)
    return torch.cat([target, error[1:]])


def explained_variance(sums: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) of added-up `value_sums`.

    1 is a perfect critic, 0 a constant one, negative worse than that. Returns that do not vary
    leave nothing to explain and give 0.
    """
    _, variance = mean_and_variance(sums[:3])
    _, residual = mean_and_variance(sums[[0, 3, 4]])
    return float(1 - residual / variance) if variance > 1e-12 else 0.0
