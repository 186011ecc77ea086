"""List-wise losses: the order of K replies to one prompt, as `Replies.scores` gives it.

Replies of equal score are in no order: no pair of them adds to a loss. p is the log-prob per token.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rl.losses.replies import Replies


def rrhf(replies: Replies, *, sft: float = 1.0) -> Tensor:
    """(P,): sum over r_i < r_j of max(0, p_i - p_j), less `sft` times S of the best reply; the mean
    over best ones that tie (RRHF, arXiv 2304.05302).
    """
    p = replies.mean_logprobs
    inversion = (p[:, :, None] - p[:, None, :]).clamp(min=0)  # (P, K, K): i over j
    rank = inversion.masked_fill(~_is_worse(replies.scores), 0).sum((-1, -2))
    return rank - sft * _mean_of_best(replies.logprobs, replies.scores)


def pro(replies: Replies, *, sft: float = 0.05) -> Tensor:
    """(P,): -sum_k log[ e^(p_k / T_k^k) / (e^(p_k / T_k^k) + sum over r_i < r_k of e^(p_i / T_k^i))
    ] - sft * p of the best, T_k^i = 1 / (r_k - r_i) and T_k^k the smallest of them: each reply
    against all worse ones, harder the larger the distance (PRO, arXiv 2306.17492).

    The default of `sft`, and imitation per token and not per reply, are unverified.
    """
    p, r = replies.mean_logprobs, replies.scores
    gap = r[:, :, None] - r[:, None, :]  # (P, K, K): 1 / T_k^i
    own = p * gap.amax(-1)  # (P, K)
    others = (p[:, None, :] * gap).masked_fill(~_is_worse(r).mT, -torch.inf)
    ranks = torch.logsumexp(torch.cat([own[..., None], others], -1), -1) - own  # 0 for the worst
    return ranks.sum(-1) - sft * _mean_of_best(p, r)


def lipo(replies: Replies, *, beta: float = 0.1) -> Tensor:
    """(P,): -sum over psi_i > psi_j of |2^psi_i - 2^psi_j| |1 / log(1 + t_i) - 1 / log(1 + t_j)|
    log s(s_i - s_j), psi the scores (of order 1), s = beta h, t the rank of s, 1 for the largest;
    equal s rank by column, so that a policy that has not moved learns too.
    (LiPO-lambda, arXiv 2402.01878; form unverified.)
    """
    s = beta * replies.log_ratios
    rank = s.argsort(dim=-1, descending=True, stable=True).argsort(-1) + 1  # (P, K)
    discount = 1 / torch.log1p(rank.to(s.dtype))
    gain = torch.exp2(replies.scores)
    weights = _distances(gain) * _distances(discount)
    terms = -weights * logsigmoid(s[:, :, None] - s[:, None, :])  # (P, K, K): i over j
    return terms.masked_fill(~_is_worse(replies.scores).mT, 0).sum((-1, -2))


def lire(replies: Replies, *, temperature: float = 1.0) -> Tensor:
    """(P,): -sum_k softmax_k(p / temperature) r_k: the expected score among these replies (LIRE,
    arXiv 2405.13516; form, log-probs per token and temperature unverified).
    """
    return -(torch.softmax(replies.mean_logprobs / temperature, -1) * replies.scores).sum(-1)


def _is_worse(scores: Tensor) -> Tensor:
    """(P, K, K) bool: whether reply i scores strictly below reply j."""
    return scores[:, :, None] < scores[:, None, :]


def _distances(values: Tensor) -> Tensor:
    return (values[:, :, None] - values[:, None, :]).abs()


def _mean_of_best(values: Tensor, scores: Tensor) -> Tensor:
    """(P,): mean of `values` (P, K) over the replies with the highest score."""
    is_best = scores == scores.amax(-1, keepdim=True)
    return values.masked_fill(~is_best, 0).sum(-1) / is_best.sum(-1)
