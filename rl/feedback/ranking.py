"""Pairwise judgements of K replies -> scores and ranks, and a judge's words -> a judgement.

`probabilities[i, j]` of (K, K) says how likely reply i beats reply j when i is shown first (PairRM
and its kin, LLM-Blender, arXiv 2306.02561); the diagonal means nothing. Scores (K,): higher is
better.
"""

import re

import torch
from torch import Tensor

BRACKETED_VERDICT = r"\[\[(A|B|tie)\]\]"
"""A judge asked to end its answer with [[A]], [[B]] or [[tie]]."""
_VERDICTS = {"a": 1.0, "b": 0.0, "tie": 0.5}


def cancel_order(probabilities: Tensor) -> Tensor:
    """(K, K): q[i, j] = (p[i, j] + 1 - p[j, i]) / 2, with 1/2 on the diagonal.

    A judge that favours whatever it reads first adds the same to p[i, j] and p[j, i]; in q it
    cancels, and q[i, j] + q[j, i] = 1. Raises ValueError for another shape or a value outside
    [0, 1].
    """
    wins = _checked(probabilities)
    return 0.5 + (wins - wins.T) / 2  # in this form an even match is 1/2 without rounding


def mean_win_probability(probabilities: Tensor) -> Tensor:
    """(K,): how likely each reply beats another one, the mean of its row without the diagonal.

    Give what `cancel_order` returned. Raises ValueError as there, and for a single reply.
    """
    wins = _checked(probabilities)
    return (wins.sum(-1) - 0.5) / (len(wins) - 1)


def borda(probabilities: Tensor) -> Tensor:
    """(K,): how many replies each one beats (probability above 1/2); an even match counts 1/2.

    Unlike the mean it ignores by how much, so one overconfident comparison cannot decide. Give what
    `cancel_order` returned. Raises ValueError as `mean_win_probability`.
    """
    wins = _checked(probabilities)
    return ((wins > 0.5) + 0.5 * (wins == 0.5)).sum(-1) - 0.5


def ranks(scores: Tensor) -> Tensor:
    """(K,) int64: how many replies score higher, so 0 is the best and equals share a rank."""
    return (scores[None, :] > scores[:, None]).sum(-1)


def parse_verdict(text: str, pattern: str = BRACKETED_VERDICT) -> float:
    """How likely the judge finds the first reply better: A is 1, B is 0, tie is 1/2.

    `pattern` is a regular expression whose one group holds `A`, `B` or `tie`, in either case; the
    last match counts, since judges reason before they decide. Raises ValueError for a verdict
    that cannot be read: it is never taken as a tie.
    """
    expression = re.compile(pattern)
    if expression.groups != 1:
        raise ValueError(
            f"verdict pattern {pattern!r} has {expression.groups} groups; put the verdict in one"
        )
    found = expression.findall(text)
    verdict = _VERDICTS.get(found[-1].strip().lower()) if found else None
    if verdict is None:
        raise ValueError(
            f"no verdict A, B or tie in the judge's answer ending {text[-80:]!r}; "
            f"ask for one that matches {pattern!r}"
        )
    return verdict


def _checked(probabilities: Tensor) -> Tensor:
    """(K, K) with 1/2 on the diagonal."""
    if probabilities.ndim != 2 or len(set(probabilities.shape)) != 1 or len(probabilities) < 2:
        raise ValueError(
            f"probabilities have shape {tuple(probabilities.shape)}; give (K, K), K at least 2"
        )
    is_self = torch.eye(len(probabilities), dtype=torch.bool, device=probabilities.device)
    wins = probabilities.masked_fill(is_self, 0.5)
    if not bool(((wins >= 0) & (wins <= 1)).all()):
        raise ValueError("probabilities: a value lies outside [0, 1]; give p(first beats second)")
    return wins
