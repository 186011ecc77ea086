"""Several scores of the same replies -> one: mean, minimum, or mean less a penalty for doubt.

Scores are (M, B): M judges of one scale (normalise each first), B replies. All return (B,) in the
scores' unit and raise ValueError for anything but a matrix with at least one judge.
"""

from torch import Tensor


def mean_score(scores: Tensor) -> Tensor:
    """(B,): the mean over the M judges."""
    return _checked(scores).mean(0)


def minimum_score(scores: Tensor) -> Tensor:
    """(B,): the lowest of the M scores (worst-case optimisation, arXiv 2310.02743)."""
    return _checked(scores).amin(0)


def disagreement(scores: Tensor) -> Tensor:
    """(B,): standard deviation over the M judges, divided by M, so that one judge has none."""
    return _checked(scores).std(0, correction=0)


def penalised_score(scores: Tensor, k: float) -> Tensor:
    """(B,): mean - `k` * standard deviation over the M judges; `k` = 0 is the mean.

    Kin of uncertainty-weighted optimisation (arXiv 2310.02743), which subtracts the variance: the
    deviation has the unit of the score, so `k` keeps its meaning when rewards are rescaled. Raises
    ValueError for `k` below 0, which would reward replies that judges are unsure of.
    """
    if not k >= 0:
        raise ValueError(f"k is {k}: give the standard deviations to subtract, 0 or more")
    return mean_score(scores) - k * disagreement(scores)


def _checked(scores: Tensor) -> Tensor:
    if scores.ndim != 2 or not len(scores):
        raise ValueError(f"scores have shape {tuple(scores.shape)}; give (judges, replies)")
    return scores
