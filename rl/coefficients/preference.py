"""Coefficients of the pair losses outside the RPO family: + for the chosen reply, - for the other.

A function has the name and the parameters of its loss in `rl.losses.preference` and gives (P, K).
"""

import torch
from torch import Tensor

from rl.coefficients.columns import gap, is_chosen, is_explored, signs
from rl.coefficients.rpo import rpo
from rl.losses.preference import at
from rl.losses.replies import Replies


def robust_dpo(replies: Replies, *, beta: float = 0.1, epsilon: float = 0.1) -> Tensor:
    """The true label counts (1 - eps) / (1 - 2 eps), more than once."""
    target = (1 - epsilon) / (1 - 2 * epsilon)
    slope = target - torch.sigmoid(beta * gap(replies.log_ratios))
    return replies.lengths * signs(replies) * beta * slope


def dpo_positive(replies: Replies, *, beta: float = 0.1, penalty: float = 5.0) -> Tensor:
    """DPO's; 1 + penalty times it for a chosen reply that is below its reference."""
    chosen, rejected = replies.log_ratios[:, :1], replies.log_ratios[:, 1:2]
    margin = beta * (chosen - penalty * (-chosen).clamp(min=0) - rejected)
    more = 1 + penalty * is_chosen(replies) * (chosen <= 0)
    return replies.lengths * signs(replies) * beta * torch.sigmoid(-margin) * more


def dpo_sft(replies: Replies, *, beta: float = 0.01, eta: float = 0.005) -> Tensor:
    """DPO's, and imitation of the chosen reply."""
    return _dpo(replies, beta) + replies.lengths * eta * beta * is_chosen(replies)


def dual_clip_dpo(
    replies: Replies, *, beta: float = 0.1, clip_w: float = 10.0, clip_l: float = 10.0
) -> Tensor:
    """DPO's of the bounded margin, 0 for the reply whose own bound is reached."""
    h = replies.log_ratios
    margin = beta * (h[:, :1].clamp(max=clip_w) - h[:, 1:2].clamp(min=-clip_l))
    is_open = torch.where(signs(replies) > 0, h <= clip_w, h >= -clip_l)
    return replies.lengths * signs(replies) * beta * torch.sigmoid(-margin) * is_open


def nca(replies: Replies, *, beta: float = 0.01) -> Tensor:
    """Every reply is pushed down, the chosen one up as well."""
    a = beta * replies.log_ratios
    is_read = signs(replies).abs()
    slope = is_chosen(replies) * torch.sigmoid(-a) - is_read * torch.sigmoid(a) / 2
    return replies.lengths * beta * slope


def slic(replies: Replies, *, delta: float = 1.0, weight: float = 0.1, imitated: int = 0) -> Tensor:
    """The sign while the margin is below `delta`, and imitation of the column `imitated`."""
    is_violated = gap(replies.logprobs) <= delta
    return replies.lengths * (signs(replies) * is_violated + weight * is_chosen(replies, imitated))


def hinge(replies: Replies, *, beta: float = 0.05) -> Tensor:
    """The sign while the margin of implicit rewards is below 1."""
    is_violated = beta * gap(replies.log_ratios) <= 1
    return replies.lengths * signs(replies) * beta * is_violated


def orpo(replies: Replies, *, weight: float = 0.1) -> Tensor:
    """The log-odds of a reply of probability exp p per token rise by 1 / (1 - exp p)."""
    p = replies.mean_logprobs
    below_0 = p.clamp(max=-torch.finfo(p.dtype).eps)
    complement = -torch.expm1(below_0)
    odds = p - complement.log()
    slope = 1 + below_0.exp() / complement * (p == below_0)
    return is_chosen(replies) + signs(replies) * weight * torch.sigmoid(-gap(odds)) * slope


def cpo(replies: Replies, *, beta: float = 0.1, weight: float = 1.0) -> Tensor:
    """DPO's under a uniform reference, and imitation per token of the chosen reply."""
    contrast = rpo(replies, target="hard", implicit="logprob", beta=beta)
    return contrast + weight * is_chosen(replies)


def sppo(replies: Replies, *, beta: float = 1e-3) -> Tensor:
    """Towards log-ratios of ±1 / (2 beta)."""
    goal = signs(replies) * 0.5 / beta
    return replies.lengths * signs(replies).abs() * 2 * (goal - replies.log_ratios)


def selm(
    replies: Replies,
    explored: Tensor,
    *,
    alpha: float = 1e-3,
    beta: float = 0.01,
    cap: float | None = None,
) -> Tensor:
    """DPO's, less alpha beta on the explored reply y while h_y >= -cap."""
    optimism = is_explored(replies, explored)
    if cap is not None:
        optimism = optimism * (at(replies.log_ratios, explored) >= -cap)[:, None]
    return _dpo(replies, beta) - replies.lengths * alpha * beta * optimism


def xpo(replies: Replies, explored: Tensor, *, alpha: float = 1e-5, beta: float = 0.1) -> Tensor:
    """DPO's, less alpha on the explored reply y."""
    return _dpo(replies, beta) - replies.lengths * alpha * is_explored(replies, explored)


def _dpo(replies: Replies, beta: float) -> Tensor:
    return rpo(replies, target="hard", beta=beta)


TEXTS = {
    "robust_dpo": "±|o|·β·((1 − ε)/(1 − 2ε) − σ(βΔh))",
    "dpo_positive": (
        "±|o|·β·σ(−m)·(1 + penalty·1[w]·1[h ≤ 0]) where m = β·(Δh − penalty·max(0, −h_w))"
    ),
    "dpo_sft": "|o|·β·(±σ(−βΔh) + η·1[w])",
    "dual_clip_dpo": ("±|o|·β·σ(−m)·1[open] where m = β·(min(h_w, clip_w) − max(−clip_l, h_l))"),
    "nca": "|o|·β·(1[w]·σ(−βh) − σ(βh)/2)",
    "slic": "|o|·(±1[ΔS ≤ delta] + weight·1[w])",
    "hinge": "±|o|·β·1[βΔh ≤ 1]",
    "orpo": "1[w] ± weight·σ(−Δg)/(1 − exp(p)) where g = p − log(1 − exp(p))",
    "cpo": "±|o|·β·σ(−βΔS) + weight·1[w]",
    "sppo": "2·|o|·(±1/(2β) − h)",
    "selm": "|o|·β·(±σ(−βΔh) − α·1[y])",
    "xpo": "|o|·(±β·σ(−βΔh) − α·1[y])",
}
