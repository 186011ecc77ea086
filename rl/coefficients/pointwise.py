"""Coefficients of the point-wise losses: every reply for itself.

A function has the name and the parameters of its loss in `rl.losses.pointwise` and gives (P, K).
"""

import torch
from torch import Tensor

from rl.losses.pointwise import LabelMode, LogpReduction
from rl.losses.replies import Replies
from rl.losses.rpo import implicit_rewards


def pointwise_dpo(
    replies: Replies,
    *,
    beta: float = 0.1,
    c: Tensor | float = 0.0,
    label_mode: LabelMode = "binary",
    logp_reduction: LogpReduction = "sum",
) -> Tensor:
    """What the label has above its prediction; twice that for continuous labels."""
    implicit = "log_ratio" if logp_reduction == "sum" else "mean_log_ratio"
    r = beta * implicit_rewards(replies, implicit) + c
    continuous = label_mode == "continuous"
    residual = 2 * (replies.scores - r) if continuous else replies.scores - torch.sigmoid(r)
    return _weight(replies, logp_reduction) * beta * residual


def ulma(
    replies: Replies,
    *,
    beta: float = 0.1,
    c: Tensor | float = 0.0,
    label_mode: LabelMode = "binary",
    logp_reduction: LogpReduction = "sum",
) -> Tensor:
    """Imitation of a demonstration, `pointwise_dpo` of any other reply."""
    others = pointwise_dpo(
        replies, beta=beta, c=c, label_mode=label_mode, logp_reduction=logp_reduction
    )
    return torch.where(replies.is_demo, _weight(replies, logp_reduction), others)


def unlikelihood(
    replies: Replies, *, weight: float = 1.0, logp_reduction: LogpReduction = "token_mean"
) -> Tensor:
    """+ for a liked reply, -`weight` for another."""
    liked = replies.scores
    return _weight(replies, logp_reduction) * (liked - weight * (1 - liked))


def kto(
    replies: Replies,
    baseline: Tensor,
    *,
    beta: float = 0.1,
    desirable: float = 1.0,
    undesirable: float = 1.0,
) -> Tensor:
    """The slope of the logistic at the reply's gain over the baseline: largest at no gain."""
    gain = beta * (replies.log_ratios - baseline)
    slope = replies.lengths * beta * torch.sigmoid(gain) * torch.sigmoid(-gain)
    return torch.where(replies.scores > 0.5, desirable * slope, -undesirable * slope)


def _weight(replies: Replies, logp_reduction: LogpReduction) -> Tensor:
    """(P, K): |o| dx/dS, x the sum of a reply's log-probs or their mean."""
    return replies.lengths if logp_reduction == "sum" else torch.ones_like(replies.lengths)


TEXTS = {
    "pointwise_dpo": "|o|·β·(r − σ(βh + c))",
    "ulma": "|o|·1[demo] + |o|·β·(r − σ(βh + c))·1[no demo]",
    "unlikelihood": "r − weight·(1 − r)",
    "kto": "|o|·β·σ′(β·(h − z))·(desirable·1[liked] − undesirable·1[disliked])",
}
