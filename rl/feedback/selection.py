"""What to have labelled when labels are dear (Active Preference Learning, arXiv 2402.08114).

Prompts are ranked by how unsure the policy is of its reply, pairs of replies by how sure its
implicit reward is of their order: a pair it is confidently wrong about teaches most. Entropies in
nats, certainty in the unit of the reward. The paper's gains are unverified.
"""

from typing import Literal

import torch
from torch import Tensor

Criterion = Literal["random", "entropy", "certainty", "hybrid"]


def predictive_entropy(logprobs: Tensor) -> Tensor:
    """(P,): H(x) ~ -(1/N) sum_n log p(y_n | x), from log-probs (P, N) of N replies per prompt.

    Sequence log-probs, summed over tokens, of replies drawn from the same policy at temperature 1.
    Raises ValueError for anything but a matrix with at least one reply per prompt.
    """
    if logprobs.ndim != 2 or not logprobs.shape[1]:
        raise ValueError(f"logprobs have shape {tuple(logprobs.shape)}; give (prompts, replies)")
    return -logprobs.mean(-1)


def preference_entropy(probabilities: Tensor) -> Tensor:
    """(B,): -p log p - (1 - p) log(1 - p) of preference probabilities (B,); log 2 at most.

    The opposite order of `certainty`: highest where the two replies look equally good. Raises
    ValueError for a value outside [0, 1].
    """
    if not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
        raise ValueError("probabilities: a value lies outside [0, 1]; give p(first beats second)")
    return torch.special.entr(probabilities) + torch.special.entr(1 - probabilities)


def certainty(first: Tensor, second: Tensor) -> Tensor:
    """(B,): |r(x, y_1) - r(x, y_2)| of two replies' (implicit) rewards (B,) each."""
    return (first - second).abs()


def largest(values: Tensor, count: int) -> Tensor:
    """(count,) int64: where `values` (B,) are largest, largest first and the first of equals first.

    Raises ValueError for more than there are, or a value that is NaN.
    """
    if not 0 <= count <= len(values):
        raise ValueError(f"count is {count}: choose between 0 and all {len(values)} candidates")
    if bool(values.isnan().any()):
        raise ValueError(f"candidate {int(values.isnan().nonzero()[0, 0])} has no value to rank by")
    return torch.argsort(values, descending=True, stable=True)[:count]


def hybrid(entropies: Tensor, certainties: Tensor, pool: int, count: int) -> Tensor:
    """(count,) int64: of the `pool` prompts of highest entropy, those of highest certainty.

    Both (P,), most certain first. Certainties outside the pool are not read, so only the pool needs
    two replies each; how large the paper's pool is, is unverified. Raises ValueError for `pool` or
    `count` out of range.
    """
    if len(entropies) != len(certainties):
        raise ValueError(f"{len(entropies)} entropies but {len(certainties)} certainties")
    candidates = largest(entropies, pool)  # (pool,)
    return candidates[largest(certainties[candidates], count)]


def worthwhile(by: Criterion, logprobs: Tensor, reference: Tensor | None, count: int) -> Tensor:
    """(count,) int64: the prompts whose replies to have judged, by `by`.

    `logprobs` and `reference` (P, N) are sequence log-probs of N replies per prompt under the
    policy that drew them and under the reference, which entropy and random do not read. Prompts
    arrive in random order, so random takes the first. Where N > 2, certainty is of the two replies
    that are furthest apart. Hybrid's pool is the half of highest entropy.
    """
    if by == "random":
        return torch.arange(count)
    entropies = predictive_entropy(logprobs)
    if by == "entropy":
        return largest(entropies, count)
    assert reference is not None, "certainty is of the policy against its reference"
    ratios = logprobs - reference  # the implicit reward, but for beta, which keeps the order
    certainties = certainty(ratios.amax(-1), ratios.amin(-1))
    if by == "certainty":
        return largest(certainties, count)
    return hybrid(entropies, certainties, max(count, len(entropies) // 2), count)
