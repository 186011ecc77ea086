"""Advantages: GAE with a critic, and baselines from the other replies to the same prompt.

Group functions take scores (P, G): one row per prompt, its G replies side by side. A group must be
complete, so they never need a second rank. Normalising over the whole batch is `masking.whiten`.

`group_advantages` finds them by the name that a configuration gives them (`algorithm.advantage`):

rloo              less the mean of the others                              RLOO
group_centred     less the group's mean                                    Dr. GRPO, REINFORCE++
group_normalised  that, over the group's deviation                         GRPO, DAPO, GSPO, CISPO
batch_normalised  that, over the deviation of all scores of the step       Lite PPO
greedy_baseline   less the score of the greedy reply, which comes last     ReMax
top1              1 for the best reply, which alone is learned from        RAFT
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from rl.masking import mean_and_variance


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


def reward_to_go(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """(B, T): discounted sum of a token's reward and all later ones, 0 outside `mask`.

    REINFORCE++ whitens it over the whole batch; of `rewards.token_rewards` and gamma 1 it is
    score - coef * (KL from this token on). (Hu et al., arXiv 2501.03262.)
    """
    return gae(rewards, torch.zeros_like(rewards), mask, gamma, 1.0)[0]


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
    is_equal = ~nonconstant_groups(scores)[:, None]
    return (centred / torch.where(is_equal, 1.0, spread + eps)).masked_fill(is_equal, 0)


def batch_normalised(scores: Tensor, sums: Tensor, *, eps: float = 1e-4) -> Tensor:
    """(P, G): scores less their group's mean, over the deviation of all scores of the step.

    `sums` are their `moment_sums`, added up over ranks; the deviation is biased. A group of almost
    equal scores stays small, where `group_normalised` would blow it up. Raises ValueError for
    G = 1. (Lite PPO: Liu et al., arXiv 2508.08221.)
    """
    _group_size(scores, "batch_normalised")
    centred = scores - scores.mean(-1, keepdim=True)
    _, variance = mean_and_variance(sums)
    is_equal = ~nonconstant_groups(scores)[:, None]
    return (centred / (variance.sqrt() + eps).to(scores.dtype)).masked_fill(is_equal, 0)


def greedy_baseline(scores: Tensor) -> Tensor:
    """(P, G): each score less that of the group's last reply, the greedy one (ReMax).

    The baseline depends on no sample, so the gradient stays unbiased. (Li et al., 2310.10505.)
    """
    assert scores.shape[-1] >= 2, "a greedy reply alone has nothing to be a baseline of"
    return scores - scores[:, -1:]


def top1(scores: Tensor) -> Tensor:
    """(P, G) bool: the best reply of each group, the first of equals (RAFT, best-of-N).

    Raises ValueError for G = 1. (Dong et al., arXiv 2304.06767.)
    """
    best = scores.argmax(-1, keepdim=True)
    positions = torch.arange(_group_size(scores, "top1"), device=scores.device)
    return positions == best


def nonconstant_groups(scores: Tensor) -> Tensor:
    """(P,) bool: groups whose scores differ; the others teach nothing (DAPO, arXiv 2503.14476)."""
    return scores.amax(-1) != scores.amin(-1)


GroupEstimator = Callable[[Tensor, Tensor], Tensor]
"""(P, G) scores, and the sums that `batch_normalised` explains -> (P, G) advantages."""

GROUP_ESTIMATORS: Mapping[str, GroupEstimator] = {
    "rloo": lambda scores, _: rloo(scores),
    "group_centred": lambda scores, _: group_centred(scores),
    "group_normalised": lambda scores, _: group_normalised(scores),
    "batch_normalised": batch_normalised,
    "greedy_baseline": lambda scores, _: greedy_baseline(scores),
    "top1": lambda scores, _: top1(scores).to(scores.dtype),
}


def group_advantages(
    estimator: str, scores: Tensor, group_rows: Sequence[Sequence[int]], sums: Tensor
) -> Tensor:
    """(B,): advantages of replies by the named estimator, group by group.

    `group_rows` are the rows of each group, all of them, in the order of sampling; `sums` are the
    `moment_sums` of all scores of the step, added up over ranks.
    """
    result = torch.zeros_like(scores)
    for rows in group_rows:
        group = list(rows)
        result[group] = GROUP_ESTIMATORS[estimator](scores[group][None], sums)[0]
    return result


def rows_to_learn_from(
    estimator: str,
    scores: Tensor,
    group_rows: Sequence[Sequence[int]],
    *,
    filter_groups: bool = False,
) -> Tensor:
    """(B,) bool: all replies, or the best of each group for `top1`.

    With `filter_groups`, none of a group of equal scores. A greedy reply has no response mask.
    """
    kept = torch.ones_like(scores, dtype=torch.bool)
    for rows in group_rows:
        group = list(rows)
        if estimator == "top1":
            kept[group] = top1(scores[group][None])[0]
        if filter_groups:
            kept[group] &= nonconstant_groups(scores[group][None])
    return kept


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
