"""Reward-aware preference optimization: bring implicit rewards to target rewards.

Row by row, D(a || b) compares the policy's implicit rewards a (P, K) with targets b (P, K). Every D
ignores a constant added to a row of a or of b, so the loss is 0 where softmax(a) = softmax(b): for
a = beta * h and b = eta * r where the policy is reference * exp(eta * r / beta) on these replies.
(arXiv 2502.00203; the forms for K > 2 are our derivation, unverified against the paper, and
collapse to the pair form at K = 2.)

Methods that are members, as arguments of `rpo`; D, target and implicit where they differ from the
defaults bwd, scores and log_ratio:

    DPO          target=hard
    cDPO         distance=ce, target=smoothed, epsilon      InfoNCA      distance=ce, eta=1/alpha
    EXO (pair)   distance=fwd, target=smoothed, epsilon     DNO          distance=ce (unverified)
    IPO          distance=sq, target=margin, margin=1/2, beta=tau, scale=2/tau^2
    REBEL        distance=sq, beta=1/eta_REBEL, scale=2, the previous policy as reference
    Distill-DPO  distance=sq, scale=2 (scale unverified), scores of an explicit reward model
    SimPO        target=hard, implicit=mean_logprob, gamma
    f-DPO        target=hard, implicit=forward_kl or js
    NeMo-Aligner distance=sq, scale=2 is its `rpo_sq`; bwd, fwd its `rpo_bwd_kl`, `rpo_fwd_kl`
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rl.kl import MAX_LOG_RATIO
from rl.losses.replies import Replies
from rl.losses.supervised import pair_loss

Distance = Literal["sq", "bwd", "fwd", "ce"]
Target = Literal["scores", "hard", "smoothed", "margin"]
Implicit = Literal["log_ratio", "mean_log_ratio", "logprob", "mean_logprob", "forward_kl", "js"]


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
    """(P,): scale * D(a || b), a = `implicit_rewards` times `beta`, b given by `target`:

    scores    b = eta * replies.scores, all K columns; the effective KL coefficient is beta / eta
    hard      b_w - b_l = infinity: DPO, evaluated without infinities; `bwd` and `ce` alone
    smoothed  b_w - b_l = log((1 - epsilon) / epsilon): a share `epsilon` of labels is wrong
    margin    b_w - b_l = margin

    Of the last three, all but `scores`, w is column 0, l is column 1, and further columns are not
    read. `gamma` is taken off the chosen reply's a (SimPO's margin). D is one of:

    sq   1/K sum_k ((a_k - b_k) - mean over j != k of (a_j - b_j))^2 / 2; pair: (da - db)^2 / 2
    bwd  KL(softmax(b) || softmax(a)), "backward" in NeMo-Aligner's sense: the target comes first
    fwd  KL(softmax(a) || softmax(b)); grows without bound as b saturates
    ce   bwd plus the entropy of softmax(b), a constant: the classic values of cDPO and InfoNCA

    (Sun et al., arXiv 2502.00203.)
    """
    a = beta * implicit_rewards(replies, implicit)
    if gamma:
        a = torch.cat([a[:, :1] - gamma, a[:, 1:]], -1)
    if target == "scores":
        return scale * divergence(distance, a, eta * replies.scores)
    chosen, rejected = a[:, 0], a[:, 1]
    match target:
        case "hard":
            if distance not in ("bwd", "ce"):
                raise ValueError(
                    f"target is hard, where distance {distance} is infinite: "
                    "use bwd or ce, or target smoothed"
                )
            return scale * pair_loss(chosen, rejected)
        case "smoothed":
            if not 0 < epsilon < 1:
                raise ValueError(f"epsilon is {epsilon}: it must lie between 0 and 1; 0 is `hard`")
            margin = math.log((1 - epsilon) / epsilon)
    b = torch.tensor([margin, 0.0], dtype=a.dtype, device=a.device).expand(len(a), 2)
    return scale * divergence(distance, a[:, :2], b)


def implicit_rewards(replies: Replies, implicit: Implicit) -> Tensor:
    """(P, K): what the policy itself says of each reply, before beta; S, h and n as in `Replies`.

    log_ratio       h, the KL-regularised reward (DPO)
    mean_log_ratio  h / n (TRL's IPO)
    logprob         S: no reference (CPO)
    mean_logprob    S / n: a uniform reference, whose log V cancels (SimPO)
    forward_kl, js  f'(u) of f-DPO (arXiv 2309.16240), u = exp(h): -1/u and log(2u / (1 + u)) less
                    log 2; -1/u has no slope below h = -20, where it would overflow
    """
    h = replies.log_ratios
    match implicit:
        case "log_ratio":
            return h
        case "mean_log_ratio":
            return h / replies.lengths.clamp(min=1)
        case "logprob":
            return replies.logprobs
        case "mean_logprob":
            return replies.mean_logprobs
        case "forward_kl":
            return -(-h.clamp(min=-MAX_LOG_RATIO)).exp()
        case "js":
            return logsigmoid(h)


def divergence(distance: Distance, a: Tensor, b: Tensor) -> Tensor:
    """(P,): D(a || b) of `rpo` for finite rows a, b (P, K), K >= 2; no gradient reaches b."""
    size = a.shape[-1]
    if size < 2:
        raise ValueError("rpo compares the replies to one prompt and needs at least 2, not 1")
    b = b.detach()
    if distance == "sq":
        gap = a - b
        left_out = (gap - gap.mean(-1, keepdim=True)) * (size / (size - 1))
        return left_out.square().mean(-1) / 2
    log_q, log_p = torch.log_softmax(a, -1), torch.log_softmax(b, -1)
    match distance:
        case "bwd":
            return (log_p.exp() * (log_p - log_q)).sum(-1)
        case "fwd":
            return (log_q.exp() * (log_q - log_p)).sum(-1)
        case "ce":
            return -(log_p.exp() * log_q).sum(-1)
