"""Estimators of the KL divergence from the policy to a reference, and the adaptive coefficient.

k1, k2 and k3 are Schulman's estimators of KL(policy || reference) from a token that the policy
sampled; with d = logprobs - ref_logprobs: k1 = d, k2 = d²/2, k3 = exp(-d) - 1 + d.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from rl.masking import masked_sum

KLEstimator = Literal["k1", "k2", "k3"]

MAX_LOG_RATIO = 20.0
"""Log-ratios are bounded before anything is exponentiated."""
MAX_KL = 10.0
"""Bound on one token's estimate, so that a single token cannot rule a batch."""


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """(B, T): unbiased, of either sign, noisy; the estimator for the reward."""
    return (logprobs - ref_logprobs).clamp(-MAX_KL, MAX_KL)


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """(B, T): never negative, biased; its gradient is the on-policy gradient of the KL."""
    return _bounded_difference(logprobs, ref_logprobs).square().div(2).clamp(max=MAX_KL)


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """(B, T): unbiased and never negative; as a loss its gradient is biased."""
    d = _bounded_difference(logprobs, ref_logprobs)
    return (torch.expm1(-d) + d).clamp(max=MAX_KL)


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """(B, T): the named estimator, bounded to `MAX_KL` in size."""
    return {"k1": k1, "k2": k2, "k3": k3}[estimator](logprobs, ref_logprobs)


def kl_loss(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """(B, T): the KL term of a loss, differentiable in `logprobs`; `k2` or `k3`.

    Unlike `k2` above, the loss keeps its slope where a token has strayed by more than 4.5 nats:
    the bound on its value would let exactly those tokens go. `k3` keeps the bound, since its slope
    grows exponentially. Raises ValueError for `k1`, whose gradient is zero on average.
    """
    match estimator:
        case "k1":
            raise ValueError(
                "algorithm.kl.estimator is k1: as a loss its gradient is zero on average; "
                "use k2 or k3, or set algorithm.kl.place to reward"
            )
        case "k2":
            return _bounded_difference(logprobs, ref_logprobs).square() / 2
        case "k3":
            return k3(logprobs, ref_logprobs)


def kl_sums(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """(4,) float64, to be added over ranks: k1, k3, tokens, replies with a token."""
    mask = mask.bool()
    with torch.no_grad():
        parts = [
            masked_sum(k1(logprobs, ref_logprobs).double(), mask),
            masked_sum(k3(logprobs, ref_logprobs).double(), mask),
            mask.sum(),
            mask.any(-1).sum(),
        ]
        return torch.stack([part.double() for part in parts])


def kl_metrics(sums: Tensor) -> dict[str, float]:
    """Added-up `kl_sums` -> nats per token (`kl/k1`, `kl/k3`) and per reply (`kl/sequence`)."""
    total_k1, total_k3, tokens, sequences = sums.tolist()
    return {
        "kl/k1": total_k1 / max(tokens, 1),
        "kl/k3": total_k3 / max(tokens, 1),
        "kl/sequence": total_k1 / max(sequences, 1),
    }


def best_of_n_kl(n: int) -> float:
    """Nats that taking the best of `n` samples moves a policy by, at most: log n - (n - 1) / n."""
    return math.log(n) - (n - 1) / n


def adaptive_kl(coef: float, kl: float, target: float, horizon: int, num_samples: int) -> float:
    """The next KL coefficient: up where `kl` (nats per reply) exceeds `target`, else down.

    Proportional control with an error bounded to 20 %, spread over `horizon` samples.
    (Ziegler et al. 2019, arXiv 1909.08593.)
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + error * num_samples / horizon)


def _bounded_difference(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    return (logprobs - ref_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
