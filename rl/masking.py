"""Sums, means and whitening over masked tokens, and the one reduction from tokens to a loss.

Entries outside a mask are replaced, not multiplied by zero: infinities or NaNs in padding reach
neither a value nor a gradient.

Whatever is a statistic of the *whole* batch comes in two halves: `*_sums` gives a small float64
tensor that ranks and micro-batches add up, and a second function applies the total. Float64,
because E[x²] - E[x]² in float32 loses the variance of values far from zero.
"""

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["token_mean", "sequence_mean", "sequence_sum", "constant"]


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of `x` where `mask` holds: over everything, or along `dim`."""
    kept = x.masked_fill(~mask.bool(), 0)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(x: Tensor, mask: Tensor, denominator: Tensor | float | None = None) -> Tensor:
    """Sum of `x` where `mask` holds, over `denominator`: a global count, else this mask's own.

    An empty mask gives 0.
    """
    if denominator is None:
        denominator = mask.bool().sum().clamp(min=1)
    return masked_sum(x, mask) / denominator


def sequence_mean(x: Tensor, mask: Tensor) -> Tensor:
    """(B, T) -> (B,): mean over each row's masked tokens; 0 for a row without any."""
    return masked_sum(x, mask, dim=-1) / mask.bool().sum(-1).clamp(min=1)


def moment_sums(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """(3,) float64: count, sum and sum of squares of `x` (where `mask` holds)."""
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask.bool()
    kept = x.detach().double().masked_fill(~mask, 0)
    return torch.stack([mask.sum().double(), kept.sum(), kept.square().sum()])


def mean_and_variance(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, both float64 scalars, from added-up `moment_sums`."""
    count, total, squares = sums.unbind()
    mean = total / count.clamp(min=1)
    return mean, (squares / count.clamp(min=1) - mean.square()).clamp(min=0)


def whiten(
    x: Tensor,
    mask: Tensor,
    sums: Tensor | None = None,
    *,
    restore_mean: bool = False,
    eps: float = 1e-8,
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) inside `mask`, 0 outside; the variance is biased.

    `sums` are `moment_sums` added up over all ranks and micro-batches; this batch's own where left
    out. With `restore_mean` the mean is added back, as rewards need it: whitening must not decide
    which replies are good. (arXiv 2403.17031, detail of reward and advantage whitening.)
    """
    mean, variance = mean_and_variance(moment_sums(x, mask) if sums is None else sums)
    white = (x - mean.to(x.dtype)) * torch.rsqrt(variance + eps).to(x.dtype)
    if restore_mean:
        white = white + mean.to(x.dtype)
    return white.masked_fill(~mask.bool(), 0)


def aggregate(
    per_token: Tensor,
    mask: Tensor,
    mode: Aggregation,
    *,
    num_tokens: Tensor | float,
    num_sequences: Tensor | float,
    longest: int | None = None,
) -> Tensor:
    """(B, T) -> scalar: this micro-batch's share of the loss of a whole optimizer step.

    token_mean     every token of the step counts the same
    sequence_mean  every reply counts the same, by the mean of its tokens
    sequence_sum   mean over replies of the sum of their tokens
    constant       that, over the length limit `longest`: no reply's own length divides (Dr. GRPO)

    `num_tokens` and `num_sequences` count the whole step, over ranks and micro-batches, so shares
    add up to the same loss however the step is split. Only `constant` reads `longest`.
    """
    match mode:
        case "token_mean":
            return masked_sum(per_token, mask) / num_tokens
        case "sequence_mean":
            return sequence_mean(per_token, mask).sum() / num_sequences
        case "sequence_sum":
            return masked_sum(per_token, mask) / num_sequences
        case "constant":
            assert longest is not None, "a constant divisor needs the length limit"
            return masked_sum(per_token, mask) / (num_sequences * longest)
