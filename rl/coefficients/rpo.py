"""The coefficient of RPO and of all its members: -|o| scale beta dD/da da/dS."""

import math

import torch
from torch import Tensor

from rl.coefficients.columns import gap, signs
from rl.kl import MAX_LOG_RATIO
from rl.losses.replies import Replies
from rl.losses.rpo import Distance, Implicit, Target, implicit_rewards

TEXT = "−|o|·scale·∂D(a ‖ b)/∂a·∂a/∂S"
"""Of any member; `MEMBERS` are those of the method table, where `scale` is 1 unless it is named."""

_LISTS = "|o|·β·(softmax(ηr) − softmax(βh))"
MEMBERS: dict[tuple[Distance, Target, Implicit], str] = {
    ("bwd", "hard", "log_ratio"): "±|o|·β·σ(−βΔh)",
    ("bwd", "hard", "mean_logprob"): "±β·σ(γ − βΔp)",
    ("bwd", "hard", "forward_kl"): "±|o|·(β/u)·σ(−Δa) where u = exp(h); a = −β/u",
    ("bwd", "hard", "js"): "±|o|·(β/(1 + u))·σ(−Δa) where u = exp(h); a = β·log(2u/(1 + u))",
    ("ce", "smoothed", "log_ratio"): "±|o|·β·(1 − ε − σ(βΔh))",
    ("fwd", "smoothed", "log_ratio"): ("±|o|·β·q·(1 − q)·(log((1 − ε)/ε) − βΔh) where q = σ(βΔh)"),
    ("sq", "margin", "log_ratio"): "±|o|·scale·β·(margin − βΔh)",
    ("sq", "scores", "log_ratio"): ("|o|·scale·β·(K/(K − 1)²)·(g − mean(g)) where g = ηr − βh"),
    ("bwd", "scores", "log_ratio"): _LISTS,
    ("ce", "scores", "log_ratio"): _LISTS,
}


def rpo(
    replies: Replies,
    *,
    distance: Distance = "bwd",
    target: Target = "scores",
    implicit: Implicit = "log_ratio",
    beta: float = 0.1,
    eta: float = 1.0,
    gamma: float = 0.0,
    epsilon: float = 0.1,
    margin: float = 0.5,
    scale: float = 1.0,
) -> Tensor:
    """(P, K): each D's slope in closed form, times that of the implicit reward."""
    a = beta * implicit_rewards(replies, implicit)
    if gamma:
        a = torch.cat([a[:, :1] - gamma, a[:, 1:]], -1)
    chain = -replies.lengths * scale * beta * _implicit_slope(replies, implicit)
    if target == "scores":
        return chain * _slope(distance, a, eta * replies.scores)
    if target == "hard":
        return -chain * signs(replies) * torch.sigmoid(-gap(a))
    if target == "smoothed":
        margin = math.log((1 - epsilon) / epsilon)
    b = a.new_tensor([margin, 0.0]).expand(len(a), 2)
    slope = torch.zeros_like(a)
    slope[:, :2] = _slope(distance, a[:, :2], b)
    return chain * slope


def _slope(distance: Distance, a: Tensor, b: Tensor) -> Tensor:
    """(P, K): dD(a || b) / da."""
    size, q = a.shape[-1], torch.softmax(a, -1)
    match distance:
        case "sq":
            residual = a - b
            return (residual - residual.mean(-1, keepdim=True)) * size / (size - 1) ** 2
        case "bwd" | "ce":
            return q - torch.softmax(b, -1)
        case "fwd":
            residual = torch.log_softmax(a, -1) - torch.log_softmax(b, -1)
            return q * (residual - (q * residual).sum(-1, keepdim=True))


def _implicit_slope(replies: Replies, implicit: Implicit) -> Tensor:
    """(P, K): d `implicit_rewards` / dS."""
    h = replies.log_ratios
    match implicit:
        case "log_ratio" | "logprob":
            return torch.ones_like(h)
        case "mean_log_ratio" | "mean_logprob":
            return 1 / replies.lengths.clamp(min=1)
        case "forward_kl":
            return (-h).exp().masked_fill(h < -MAX_LOG_RATIO, 0)
        case "js":
            return torch.sigmoid(-h)
