"""Pair losses outside the RPO family (`rl.losses.rpo` has DPO and its kin), and those that explore.

Column 0 of `Replies` is the chosen reply w, column 1 the rejected l; h, S and n are log-ratios,
log-probs and lengths. "DPO" stands for -log sigmoid(beta (h_w - h_l)), arXiv 2305.18290. The caller
gives pairs of two equal texts weight 0.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rl.losses.replies import Replies
from rl.losses.rpo import rpo
from rl.losses.supervised import pair_loss


def robust_dpo(replies: Replies, *, beta: float = 0.1, epsilon: float = 0.1) -> Tensor:
    """(P,): [(1 - eps) DPO(w, l) - eps DPO(l, w)] / (1 - 2 eps): the mean over labels flipped with
    probability `epsilon` is DPO on the true labels (arXiv 2403.00409). `epsilon` < 1/2.
    """
    if not 0 <= epsilon < 0.5:
        raise ValueError(f"epsilon is {epsilon}: robust_dpo needs a share of flips in [0, 0.5)")
    chosen, rejected = _pair(beta * replies.log_ratios)
    return pair_loss(chosen, rejected, label_smoothing=-epsilon / (1 - 2 * epsilon))


def dpo_positive(replies: Replies, *, beta: float = 0.1, penalty: float = 5.0) -> Tensor:
    """(P,): DPO with h_w - penalty * max(0, -h_w) for h_w, so that the chosen reply keeps at least
    its reference probability (DPOP, arXiv 2402.13228).
    """
    chosen, rejected = _pair(replies.log_ratios)
    return pair_loss(beta * (chosen - penalty * (-chosen).clamp(min=0)), beta * rejected)


def dpo_sft(replies: Replies, *, beta: float = 0.01, eta: float = 0.005) -> Tensor:
    """(P,): DPO - eta * beta * S_w, the log-prob summed as in the paper's main code (Regularized
    Preference Optimization, arXiv 2405.16436).
    """
    return _dpo(replies, beta) - eta * beta * replies.logprobs[:, 0]


def spa(replies: Replies, is_noisy: Tensor, *, beta: float = 0.1, alpha: float = 0.1) -> Tensor:
    """(P,): DPO with a share `alpha` of the label moved over where `is_noisy` (P,) (SPA, arXiv
    2406.04412: the lowest tenth of the de-coupled margins of a running window).
    """
    chosen, rejected = _pair(beta * replies.log_ratios)
    smoothed = pair_loss(chosen, rejected, label_smoothing=alpha)
    return torch.where(is_noisy.bool(), smoothed, pair_loss(chosen, rejected))


def dual_clip_dpo(
    replies: Replies, *, beta: float = 0.1, clip_w: float = 10.0, clip_l: float = 10.0
) -> Tensor:
    """(P,): DPO of min(h_w, clip_w) and max(h_l, -clip_l), nats: neither reward runs away.

    A reading of TSO's dual-clip loss (arXiv 2409.02118); the paper's expression is unverified, and
    so are the bounds.
    """
    chosen, rejected = _pair(replies.log_ratios)
    return pair_loss(beta * chosen.clamp(max=clip_w), beta * rejected.clamp(min=-clip_l))


def nca(replies: Replies, *, beta: float = 0.01) -> Tensor:
    """(P,): -log s(b h_w) - log s(-b h_w) / 2 - log s(-b h_l) / 2, s the logistic: absolute instead
    of relative likelihood (NCA, arXiv 2402.05369).
    """
    chosen, rejected = _pair(beta * replies.log_ratios)
    return -logsigmoid(chosen) - (logsigmoid(-chosen) + logsigmoid(-rejected)) / 2


def slic(replies: Replies, *, delta: float = 1.0, weight: float = 0.1, imitated: int = 0) -> Tensor:
    """(P,): max(0, delta - S_w + S_l) - weight * S of the column `imitated`, the chosen one unless
    a further column holds the supervised target (SLiC-HF, arXiv 2305.10425; defaults unverified).
    """
    chosen, rejected = _pair(replies.logprobs)
    return (delta - chosen + rejected).clamp(min=0) - weight * replies.logprobs[:, imitated]


def hinge(replies: Replies, *, beta: float = 0.05) -> Tensor:
    """(P,): max(0, 1 - beta (h_w - h_l)): RSO's hinge-norm (arXiv 2309.06657), whose pairs are
    rejection-sampled from the optimal policy.
    """
    chosen, rejected = _pair(beta * replies.log_ratios)
    return (1 - (chosen - rejected)).clamp(min=0)


def orpo(replies: Replies, *, weight: float = 0.1) -> Tensor:
    """(P,): -p_w - weight * log s(logit(exp p_w) - logit(exp p_l)), p = S / n: imitation and the
    odds ratio of the two replies, without a reference (ORPO, arXiv 2403.07691).
    """
    p = replies.mean_logprobs
    below_0 = p.clamp(max=-torch.finfo(p.dtype).eps)
    chosen, rejected = _pair(p - torch.log(-torch.expm1(below_0)))
    return -p[:, 0] + weight * pair_loss(chosen, rejected)


def cpo(replies: Replies, *, beta: float = 0.1, weight: float = 1.0) -> Tensor:
    """(P,): -log s(beta (S_w - S_l)) - weight * S_w / n_w: DPO with a uniform reference, and
    imitation (CPO, arXiv 2401.08417).
    """
    contrast = rpo(replies, target="hard", implicit="logprob", beta=beta)
    return contrast - weight * replies.mean_logprobs[:, 0]


def sppo(replies: Replies, *, beta: float = 1e-3) -> Tensor:
    """(P,): (h_w - 1 / (2 beta))^2 + (h_l + 1 / (2 beta))^2: self-play with a win taken for sure
    (SPPO, hard labels, arXiv 2405.00675).
    """
    chosen, rejected = _pair(replies.log_ratios)
    return (chosen - 0.5 / beta).square() + (rejected + 0.5 / beta).square()


def selm(
    replies: Replies,
    explored: Tensor,
    *,
    alpha: float = 1e-3,
    beta: float = 0.01,
    cap: float | None = None,
) -> Tensor:
    """(P,): DPO + alpha * beta * h_y: optimism, for the loss falls where the reference's own reply
    y becomes unlikely (SELM, arXiv 2405.19332, in the form of its code: h_y where eq. 4.2 has S_y,
    the same gradient).

    `explored` (P,) long is the column of y, the reply sampled at the start of the iteration; it may
    be 0, 1, or a column that lost its place in the pair. The term has no lower bound: with `cap` it
    is dropped for every reply whose h_y < -cap, reply by reply so that splitting a batch changes
    nothing. Log `at(replies.log_ratios, explored)` to see it run away.
    """
    h = at(replies.log_ratios, explored)
    if cap is not None:
        h = h.masked_fill(h < -cap, 0)
    return _dpo(replies, beta) + alpha * beta * h


def xpo(replies: Replies, explored: Tensor, *, alpha: float = 1e-5, beta: float = 0.1) -> Tensor:
    """(P,): DPO + alpha * S_y, y the sample of the fixed reference, in column `explored` (P,) long;
    alpha has no beta in it (XPO, arXiv 2405.21046; defaults of TRL, the paper's unverified).
    """
    return _dpo(replies, beta) + alpha * at(replies.logprobs, explored)


def at(values: Tensor, column: Tensor) -> Tensor:
    """(P,): of each row of `values` (P, K) the entry in that row's `column` (P,) long."""
    return values.gather(-1, column[:, None]).squeeze(-1)


def _dpo(replies: Replies, beta: float) -> Tensor:
    return rpo(replies, target="hard", beta=beta)


def _pair(values: Tensor) -> tuple[Tensor, Tensor]:
    return values[:, 0], values[:, 1]
