"""The unified gradient: what each method multiplies the gradient of a token's log-prob by.

Gradient *ascent* follows mean over replies o of 1/|o| sum_t delta_t grad log pi(o_t | ..), with one
delta per method (arXiv 2409.02795): for a loss L of whole replies delta = -|o| dL/dS, for a loss
per token delta = -dL/dlogprob. Closed forms, to diagnose a run and to hold the losses against.
Functions of `Replies` return (P, K), those of tokens (B, T). A hard filter, RAFT's kept reply, is
`sft` of `is_kept`.
"""

import torch
from torch import Tensor

from rl.losses.replies import Replies
from rl.losses.rpo import Distance


def sft(is_kept: Tensor) -> Tensor:
    """1 for each reply that is imitated: a demonstration, or what RAFT and RFT keep."""
    return is_kept.float()


def reinforce(lengths: Tensor, advantages: Tensor) -> Tensor:
    """|o| (R - baseline), advantages (P, K): REINFORCE, RLOO, ReMax."""
    return lengths * advantages


def ppo(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """(B, T): A ratio, 0 where the clip stopped it."""
    ratio = (logprobs - old_logprobs).exp()
    is_clipped = torch.where(advantages > 0, ratio > 1 + clip_high, ratio < 1 - clip_low)
    return (advantages * ratio).masked_fill(is_clipped, 0)


def grpo(ppo_delta: Tensor, logprobs: Tensor, ref_logprobs: Tensor, *, beta: float) -> Tensor:
    """(B, T): `ppo` with the group's advantages, plus beta (pi_ref / pi - 1) of the k3 loss."""
    return ppo_delta + beta * torch.expm1(ref_logprobs - logprobs)


def dpo(replies: Replies, *, beta: float) -> Tensor:
    """±|o| beta s(-beta (h_w - h_l)), s the logistic; + for the chosen column 0, - for column 1."""
    gap = _gap(replies.log_ratios)
    return _signed(replies) * beta * torch.sigmoid(-beta * gap)


def ipo(replies: Replies, *, tau: float) -> Tensor:
    """±|o| 2 (1 / (2 tau) - (h_w - h_l))."""
    return _signed(replies) * 2 * (0.5 / tau - _gap(replies.log_ratios))


def simpo(replies: Replies, *, beta: float, gamma: float) -> Tensor:
    """±beta s(gamma - beta (S_w / n_w - S_l / n_l)); the length has cancelled."""
    signs = _signed(replies) / replies.lengths
    return signs * beta * torch.sigmoid(gamma - beta * _gap(replies.mean_logprobs))


def slic(replies: Replies, *, delta: float, weight: float) -> Tensor:
    """±|o| where S_w - S_l < delta, else 0; and |o| weight on the imitated chosen reply."""
    is_violated = _gap(replies.logprobs) < delta
    chosen = torch.zeros_like(replies.lengths)
    chosen[:, 0] = replies.lengths[:, 0]
    return _signed(replies) * is_violated + weight * chosen


def kto(
    replies: Replies,
    baseline: Tensor,
    *,
    beta: float,
    desirable: float = 1.0,
    undesirable: float = 1.0,
) -> Tensor:
    """|o| desirable beta s'(beta (h - z)) where liked, else -|o| undesirable beta s'(..)."""
    gain = beta * (replies.log_ratios - baseline)
    slope = replies.lengths * beta * torch.sigmoid(gain) * torch.sigmoid(-gain)
    return torch.where(replies.scores > 0.5, desirable * slope, -undesirable * slope)


def rpo(replies: Replies, *, distance: Distance, beta: float, eta: float = 1.0) -> Tensor:
    """-|o| beta dD/da for scored replies: the slope of each D in closed form."""
    a, b = beta * replies.log_ratios, eta * replies.scores
    q, size = torch.softmax(a, -1), a.shape[-1]
    match distance:
        case "sq":
            gap = a - b
            slope = (gap - gap.mean(-1, keepdim=True)) * size / (size - 1) ** 2
        case "bwd" | "ce":
            slope = q - torch.softmax(b, -1)
        case "fwd":
            slope = q * (a - b - (q * (a - b)).sum(-1, keepdim=True))
    return -replies.lengths * beta * slope


def _gap(values: Tensor) -> Tensor:
    """(P, 1): the chosen reply's value less the rejected one's."""
    return values[:, :1] - values[:, 1:2]


def _signed(replies: Replies) -> Tensor:
    """(P, 2): the length of the chosen reply, minus the length of the rejected one."""
    return replies.lengths * replies.lengths.new_tensor([1.0, -1.0])
