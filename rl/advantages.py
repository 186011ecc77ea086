"""Advantages: GAE with a critic, and baselines from the other replies to the same prompt.

Group functions take scores (P, G): one row per prompt, its G replies side by side. A group must be
complete, so they never need a second rank. Normalising over the whole batch is `masking.whiten`.
"""

import torch
from torch import Tensor


@torch.no_grad()
def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, (B, T) each and 0 outside `mask`.

    `values[b, t]` judges the state *before* token t. The end of a reply is terminal: nothing is
    bootstrapped there. Positions outside the mask are skipped, so a gap of tool output between two
    turns changes nothing and padding may hold anything. (Schulman et al., arXiv 1506.02438.)
    """
    mask = mask.bool()
    values = values.masked_fill(~mask, 0)
    rewards = rewards.masked_fill(~mask, 0)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = values.new_zeros(len(values))  # (B,)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        advantages[:, t] = advantage
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        next_advantage = torch.where(mask[:, t], advantage, next_advantage)
    advantages = advantages.masked_fill(~mask, 0)
    return advantages, advantages + values


def rloo(scores: Tensor) -> Tensor:
    """(P, G): each score less the mean of the *other* replies' scores; unbiased.

    Feed `rewards.shaped_scores` for the paper's form, in which the KL is part of the score and so
    of the baseline. Raises ValueError for G = 1. (Ahmadian et al., arXiv 2402.14740.)
    """
    size = _group_size(scores, "rloo")
    return (scores - scores.mean(-1, keepdim=True)) * (size / (size - 1))


def group_centred(scores: Tensor) -> Tensor:
    """(P, G): each score less the mean of its group, itself included (Dr. GRPO).

    Raises ValueError for G = 1.
    """
    _group_size(scores, "group_centred")
    return scores - scores.mean(-1, keepdim=True)


def group_normalised(scores: Tensor, *, biased: bool = False, eps: float = 1e-4) -> Tensor:
    """(P, G): scores less their group's mean, over its standard deviation plus `eps` (GRPO).

    A group of equal scores gives exactly 0, also where rounding leaves a tiny deviation. Raises
    ValueError for G = 1. (Shao et al., arXiv 2402.03300.)
    """
    _group_size(scores, "group_normalised")
    centred = scores - scores.mean(-1, keepdim=True)
    spread = scores.std(-1, keepdim=True, correction=0 if biased else 1)
    is_equal = scores.amax(-1, keepdim=True) == scores.amin(-1, keepdim=True)
    return (centred / torch.where(is_equal, 1.0, spread + eps)).masked_fill(is_equal, 0)


def spread_over_tokens(advantages: Tensor, mask: Tensor) -> Tensor:
    """(B,) -> (B, T): a reply's advantage on each of its masked tokens, 0 elsewhere."""
    return advantages[:, None] * mask.to(advantages.dtype)


def _group_size(scores: Tensor, estimator: str) -> int:
    if scores.shape[-1] < 2:
        raise ValueError(
            f"data.samples_per_prompt is {scores.shape[-1]}: {estimator} compares the replies to "
            "one prompt and needs at least 2"
        )
    return scores.shape[-1]
