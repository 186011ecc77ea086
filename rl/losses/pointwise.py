"""Point-wise losses: every reply for itself, by its label or score; all of them return (P, K).

r = beta * u + c, where u is the log-ratio of the reply and c (x) = beta log Z(x) what pairs would
cancel: 0, a number, or a tensor that broadcasts to (P, K). `logp_reduction` sum is the equations',
token_mean (u / n, S / n) what the authors' code does. (ULMA, arXiv 2312.02554.)
"""

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from rl.losses.replies import Replies
from rl.losses.rpo import implicit_rewards

LabelMode = Literal["binary", "continuous"]
LogpReduction = Literal["sum", "token_mean"]
ClassReduction = Literal["global", "class_balanced", "reference_code"]


def pointwise_dpo(
    replies: Replies,
    *,
    beta: float = 0.1,
    c: Tensor | float = 0.0,
    label_mode: LabelMode = "binary",
    logp_reduction: LogpReduction = "sum",
) -> Tensor:
    """(P, K): binary -[z log s(r) + (1 - z) log s(-r)] with labels z; continuous (z - r)^2, whose
    scores z want a true c, or at least centring (`mean_score`). (arXiv 2312.02554.)
    """
    implicit = "log_ratio" if logp_reduction == "sum" else "mean_log_ratio"
    r = beta * implicit_rewards(replies, implicit) + c
    if label_mode == "continuous":
        return (replies.scores - r).square()
    return binary_cross_entropy_with_logits(r, replies.scores, reduction="none")


def ulma(
    replies: Replies,
    *,
    beta: float = 0.1,
    c: Tensor | float = 0.0,
    label_mode: LabelMode = "binary",
    logp_reduction: LogpReduction = "sum",
) -> Tensor:
    """(P, K): -S of a demonstration, `pointwise_dpo` of any other reply: trusted replies are
    imitated without a KL, the noisy rest is fitted with one. (arXiv 2312.02554.)
    """
    logprobs = replies.logprobs if logp_reduction == "sum" else replies.mean_logprobs
    others = pointwise_dpo(
        replies, beta=beta, c=c, label_mode=label_mode, logp_reduction=logp_reduction
    )
    return torch.where(replies.is_demo, -logprobs, others)


def unlikelihood(
    replies: Replies, *, weight: float = 1.0, logp_reduction: LogpReduction = "token_mean"
) -> Tensor:
    """(P, K): -S of a liked reply, `weight` S of another: ULMA's baseline, with no lower bound; at
    weight 0 it imitates liked replies alone.
    """
    logprobs = replies.logprobs if logp_reduction == "sum" else replies.mean_logprobs
    return (weight * (1 - replies.scores) - replies.scores) * logprobs


def kto(
    replies: Replies,
    baseline: Tensor,
    *,
    beta: float = 0.1,
    desirable: float = 1.0,
    undesirable: float = 1.0,
) -> Tensor:
    """(P, K): desirable * (1 - s(beta (h - z))) where liked, else undesirable * (1 - s(beta (z -
    h))). `baseline` z, a scalar, is max(0, mean of h over replies to *other* prompts) of the whole
    batch; no gradient reaches it. (KTO, arXiv 2402.01306.)
    """
    gain = beta * (replies.log_ratios - baseline.detach())
    liked = replies.scores > 0.5
    return torch.where(liked, desirable * torch.sigmoid(-gain), undesirable * torch.sigmoid(gain))


def estimate_c(scores: Tensor, *, beta: float) -> Tensor:
    """(P, 1): beta log mean_k exp(scores_k / beta), c(x) from scores (P, M) of M replies sampled by
    the *reference*; biased low for small M.
    """
    log_mean = torch.logsumexp(scores / beta, -1, keepdim=True) - math.log(scores.shape[-1])
    return beta * log_mean


def mean_score(scores: Tensor) -> Tensor:
    """(P, 1): mean of scores (P, M) of the reference's replies. Taken from every score, it is the
    least that continuous labels need while c = 0, or every u is pushed the same way.
    """
    return scores.mean(-1, keepdim=True)


def class_weights(
    is_positive: Tensor,
    reduction: ClassReduction,
    *,
    num_positive: Tensor | float,
    num_negative: Tensor | float,
) -> Tensor:
    """(P, K), float32: what each loss is multiplied by before all are summed.

    global          mean over all replies
    class_balanced  mean over positives plus mean over negatives
    reference_code  the same with the classes of this micro-batch alone, so that the result depends
                    on the split; for comparison with the authors' code, which then averages over
                    micro-batches

    `num_*` count the whole optimizer step, over ranks and micro-batches. An empty class adds 0.
    """
    is_positive = is_positive.bool()
    if reduction == "reference_code":
        num_positive, num_negative = is_positive.sum(), (~is_positive).sum()
    positives = torch.as_tensor(num_positive, device=is_positive.device).float()
    negatives = torch.as_tensor(num_negative, device=is_positive.device).float()
    if reduction == "global":
        positives = negatives = positives + negatives
    return torch.where(is_positive, 1 / positives, 1 / negatives)


def pairs_to_points(replies: Replies) -> Replies:
    """Pairs (P, 2) as 2P points: chosen replies are liked demonstrations, rejected ones are not."""
    if replies.scores.shape[-1] != 2:
        raise ValueError(f"pairs have 2 columns, not {replies.scores.shape[-1]}")
    is_chosen = torch.zeros_like(replies.is_demo)
    is_chosen[:, 0] = True
    return replace(replies, scores=is_chosen.to(replies.scores.dtype), is_demo=is_chosen)
