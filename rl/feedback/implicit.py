"""The policy read as a reward model: what it moved towards, it prefers.

DPO's optimum has r(x, y) = beta log(pi(y | x) / pi_ref(y | x)) up to a term of x alone (arXiv
2305.18290), which a comparison of two replies to one prompt does not see.
"""

import torch
from torch import Tensor


def implicit_reward(
    logprobs: Tensor, ref_logprobs: Tensor, beta: float, lengths: Tensor | None = None
) -> Tensor:
    """(B,): beta * (S_policy - S_ref), per token where `lengths` (B,) are given.

    Sequence log-probs (B,) in nats, summed over response tokens; `lengths` counts these. Without
    normalisation a long reply has more room to earn: SPA is reported to grow verbose, so log
    length. Raises ValueError for `beta` not above 0, unequal shapes, or a length below 1.
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta}: the implicit reward needs one above 0")
    if logprobs.shape != ref_logprobs.shape:
        raise ValueError(
            f"log-probs of shape {tuple(logprobs.shape)} but {tuple(ref_logprobs.shape)} of the "
            "reference; give both for the same replies"
        )
    rewards = beta * (logprobs - ref_logprobs)
    if lengths is None:
        return rewards
    if lengths.shape != logprobs.shape or bool((lengths < 1).any()):
        raise ValueError("lengths: give the number of response tokens, 1 or more, of every reply")
    return rewards / lengths


def preference_probability(first: Tensor, second: Tensor) -> Tensor:
    """(B,): p(y_1 beats y_2) = sigmoid(r(y_1) - r(y_2)) of two replies' rewards (B,) each.

    Of implicit rewards, the labels of SPA (arXiv 2406.04412): policy of the last round against the
    *initial* SFT model, not against the reference of this round's loss. Of `combine.lagrangian`
    scores, the pseudo-labels of One-Shot Safety Alignment (arXiv 2405.19544).
    """
    return torch.sigmoid(first - second)
