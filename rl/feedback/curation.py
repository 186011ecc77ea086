"""Self-curation: learn only from pairs that a proxy reward model agrees with.

D' = {(x, y_w, y_l): r(x, y_w) - r(x, y_l) > margin}, where the proxy r was trained on all the pairs
with -log sigmoid(r(x, y_w) - r(x, y_l)): what it learned from most labels contradicts the wrong
ones (arXiv 2408.12799). Which margin the paper uses, if any, is unverified; 0 gives its D'.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Curation:
    """Which pairs stay."""

    is_kept: Tensor
    """(P,) bool"""

    @property
    def num_kept(self) -> int:
        """Pairs that stay; to be summed over ranks before any division."""
        return int(self.is_kept.sum())

    @property
    def kept_fraction(self) -> float:
        """Share of the pairs that stay."""
        return self.num_kept / len(self.is_kept)


def curate(chosen_scores: Tensor, rejected_scores: Tensor, margin: float = 0.0) -> Curation:
    """Keep pair p where chosen_scores[p] - rejected_scores[p] > `margin`, both (P,) by one proxy.

    No chance is involved: the same scores keep the same pairs. A pair right at the margin goes, so
    with margin 0 a proxy that cannot tell the replies apart does not vouch for them. Raises
    ValueError for unequal shapes, no pairs, a score that is not finite, or a negative margin.
    """
    if chosen_scores.shape != rejected_scores.shape or chosen_scores.ndim != 1:
        raise ValueError(
            f"{tuple(chosen_scores.shape)} chosen and {tuple(rejected_scores.shape)} rejected "
            "scores; give one of each per pair"
        )
    if not len(chosen_scores):
        raise ValueError("no pairs to curate; give at least one")
    if not margin >= 0:
        raise ValueError(f"margin is {margin}: below 0 it would keep pairs the proxy contradicts")
    finite = torch.isfinite(chosen_scores) & torch.isfinite(rejected_scores)  # (P,)
    if not bool(finite.all()):
        raise ValueError(
            f"pair {int((~finite).nonzero()[0, 0])} has no finite proxy score; score it again"
        )
    return Curation(is_kept=chosen_scores - rejected_scores > margin)
