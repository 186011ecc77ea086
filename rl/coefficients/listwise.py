"""Coefficients of the list-wise losses: what a reply gains from worse ones, and owes better ones.

A function has the name and the parameters of its loss in `rl.losses.listwise` and gives (P, K).
"""

import torch
from torch import Tensor

from rl.losses.replies import Replies


def rrhf(replies: Replies, *, sft: float = 1.0) -> Tensor:
    """The worse replies that it should overtake, less the better ones that it should let pass."""
    p, is_worse = replies.mean_logprobs, _is_worse(replies.scores)
    is_inverted = (is_worse & (p[:, :, None] >= p[:, None, :])).to(p.dtype)  # (P, K, K): i over j
    rank = is_inverted.sum(1) - is_inverted.sum(2)
    return rank + sft * replies.lengths * _share_of_best(replies.scores)


def pro(replies: Replies, *, sft: float = 0.05) -> Tensor:
    """Each reply k distributes a probability Q_k over itself and all worse ones."""
    p, r = replies.mean_logprobs, replies.scores
    distance = r[:, :, None] - r[:, None, :]  # (P, K, K): r_k - r_i
    own = distance.amax(-1)  # (P, K): 1 / T_k^k
    others = (p[:, None, :] * distance).masked_fill(~_is_worse(r).mT, -torch.inf)
    q = torch.softmax(torch.cat([(p * own)[..., None], others], -1), -1)  # k itself, then all i
    rank = own * (1 - q[..., 0]) - (q[..., 1:] * distance).sum(1)
    return rank + sft * _share_of_best(r)


def lipo(replies: Replies, *, beta: float = 0.1) -> Tensor:
    """Pairs of a list as in DPO, each with its weight: difference of gains times of discounts."""
    s = beta * replies.log_ratios
    rank = s.argsort(dim=-1, descending=True, stable=True).argsort(-1) + 1  # (P, K)
    gain, discount = torch.exp2(replies.scores), 1 / torch.log1p(rank.to(s.dtype))
    weights = _differences(gain).abs() * _differences(discount).abs()
    pull = weights * torch.sigmoid(-_differences(s)) * _is_worse(replies.scores).mT  # (P, K, K)
    return replies.lengths * beta * (pull.sum(2) - pull.sum(1))


def _is_worse(scores: Tensor) -> Tensor:
    """(P, K, K) bool: whether reply i scores strictly below reply j."""
    return scores[:, :, None] < scores[:, None, :]


def _differences(values: Tensor) -> Tensor:
    return values[:, :, None] - values[:, None, :]


def _share_of_best(scores: Tensor) -> Tensor:
    """(P, K): 1 for the reply of highest score, shared by those that tie."""
    is_best = (scores == scores.amax(-1, keepdim=True)).to(scores.dtype)
    return is_best / is_best.sum(-1, keepdim=True)


TEXTS = {
    "rrhf": "#{worse j: p_j ≥ p} − #{better j: p_j ≤ p} + sft·|o|·1[best]",
    "pro": (
        "d·(1 − Q(o|o)) − Σ_(better k) (r_k − r)·Q(o|k) + sft·1[best] "
        "where d = r − min(r); Q(i|k) ∝ exp(p_i·(r_k − r_i)); Q(k|k) ∝ exp(p_k·d_k)"
    ),
    "lipo": (
        "|o|·β·(Σ_(worse j) W_j·σ(β(h_j − h)) − Σ_(better j) W_j·σ(β(h − h_j))) "
        "where W_j = |2^r − 2^r_j|·|1/log(1 + rank) − 1/log(1 + rank_j)|"
    ),
}
