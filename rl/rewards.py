"""Named rewards -> one score per reply -> rewards per token.

The order of a learner step: combine the named rewards, subtract the penalties for a missing EOS and
for length, clip, normalise by running moments, then either spread over tokens with the KL (PPO) or
shape the whole reply's score with it (RLOO). Rewards per token are whitened by `masking.whiten`
with `restore_mean=True`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rl.masking import masked_sum


def combine_rewards(rewards: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Weighted sum (B,) of named rewards (B,); parts, named `name/part`, weigh nothing.

    Raises ValueError where names and weights do not match one to one.
    """
    names = [name for name in rewards if "/" not in name]
    if set(names) != set(weights) or not names:
        raise ValueError(
            f"feedback.rewards: weights for {sorted(weights)} but scores of {sorted(names)}; "
            "give every reward exactly one weight"
        )
    return torch.stack([weights[name] * rewards[name] for name in names]).sum(0)


def penalise_missing_eos(scores: Tensor, finished: Tensor, penalty: float) -> Tensor:
    """(B,): `penalty` off the score of each reply that is not `finished` (B,)."""
    return scores - penalty * (~finished.bool()).to(scores.dtype)


def penalise_overlong(scores: Tensor, lengths: Tensor, longest: int, buffer: int) -> Tensor:
    """(B,): off each score, how far its reply's length (B,) goes into the last `buffer` tokens.

    0 up to `longest` - `buffer` tokens, then linearly up to 1 at `longest`. (DAPO, 2503.14476.)
    """
    excess = (lengths - (longest - buffer)).clamp(0, buffer)
    return scores - excess.to(scores.dtype) / buffer


def clip_scores(scores: Tensor, limit: float | None) -> Tensor:
    """(B,): scores bounded to `limit` in size; unchanged where it is None."""
    return scores if limit is None else scores.clamp(-limit, limit)


@dataclass(frozen=True, kw_only=True)
class RunningMoments:
    """Moments of all scores seen so far; part of a checkpoint, hence plain numbers.

    >>> RunningMoments().updated(moment_sums(torch.tensor([1.0, 3.0])))
    RunningMoments(count=2.0, mean=2.0, m2=2.0)
    """

    count: float = 0.0
    mean: float = 0.0
    m2: float = 0.0
    """Sum of squared distances from the mean."""

    def updated(self, sums: Tensor) -> "RunningMoments":
        """The state after more scores, given as `moment_sums` added up over ranks (Chan et al.)."""
        added, total, squares = sums.tolist()
        if added == 0:
            return self
        mean, count = total / added, self.count + added
        distance = mean - self.mean
        return RunningMoments(
            count=count,
            mean=self.mean + distance * added / count,
            m2=self.m2
            + max(squares - total * mean, 0.0)
            + distance**2 * self.count * added / count,
        )

    def normalise(self, scores: Tensor, eps: float = 1e-8) -> Tensor:
        """(B,): scores less the mean, over the biased standard deviation, both of all seen.

        Update with a batch before normalising it; without any score seen nothing is changed.
        """
        if self.count == 0:
            return scores
        return (scores - self.mean) / (self.m2 / self.count + eps) ** 0.5


def last_valid_index(mask: Tensor) -> Tensor:
    """(B,) int64: index of each row's last true entry, whatever gaps precede it; -1 for none."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask.bool(), positions, -1).amax(-1)


def read_scores(outputs: Tensor, attention_mask: Tensor) -> Tensor:
    """(B,): a reward head's outputs (B, T) at each row's last real token.

    Outputs elsewhere mean nothing. Raises ValueError for a row without a real token.
    """
    last = last_valid_index(attention_mask)
    if bool((last < 0).any()):
        row = int((last < 0).nonzero()[0, 0])
        raise ValueError(f"row {row} has no token to read a score from; drop empty sequences")
    return outputs.gather(1, last[:, None]).squeeze(1)


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, coef: float) -> Tensor:
    """(B, T): -coef * kl on every masked token, plus the score (B,) on the last of each row.

    Some codes put the score one position *after* the last token; here the last token earns it, so
    its return is the score itself. A row without tokens earns nothing.
    """
    positions = torch.arange(mask.shape[1], device=mask.device)
    is_last = positions == last_valid_index(mask)[:, None]  # (B, T)
    penalty = (-coef * kl).masked_fill(~mask.bool(), 0)
    return penalty + scores[:, None] * is_last


def shaped_scores(scores: Tensor, kl: Tensor, mask: Tensor, coef: float) -> Tensor:
    """(B,): the score of a reply as one action, score - coef * sum of its k1 `kl` (B, T).

    (RLOO, arXiv 2402.14740.)
    """
    return scores - coef * masked_sum(kl, mask, dim=-1)
