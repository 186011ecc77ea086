"""Importance weights for samples that an older policy or another engine drew.

Three policies meet in one batch: the sampler (`rollout_logprobs`), the learner before its first
update (`old_logprobs`) and the learner now. The policy ratio handles the last step; the weight
w = exp(old - rollout) here handles the first. It multiplies the policy term only, and no gradient
flows through it.

mode                 bounded quantity        outside the bounds      weight
token_tis            w per token             clamped                 clamped w
token_mask           w per token             token weighs 0          w
sequence_tis         product of w            clamped                 clamped product
sequence_mask        product of w            reply dropped           product
geometric            geometric mean of w     reply dropped           1
seq_mask_tis         geometric mean of w     reply dropped           w
k3                   mean of w - 1 - log w   dropped above `high`    1
none, bypass         -                       -                       1

The product is unbiased, of high variance, and leaves its bounds on long replies even where every
token is close; the geometric mean does not. `bypass` means that the caller took the sampler's
log-probs as old ones, so that the policy ratio corrects already.
"""

from typing import Literal

import torch
from torch import Tensor

from rl.kl import MAX_LOG_RATIO
from rl.masking import masked_sum, sequence_mean

CorrectionMode = Literal[
    "none",
    "token_tis",
    "token_mask",
    "sequence_tis",
    "sequence_mask",
    "geometric",
    "seq_mask_tis",
    "k3",
    "bypass",
]

_DROPS_REPLIES = ("sequence_mask", "geometric", "seq_mask_tis", "k3")
_SUMS = (
    "tokens", "weight", "squared", "k1", "k3", "error", "units", "outside", "replies", "ppl_ratio",
)  # fmt: skip


@torch.no_grad()
def correction_weights(
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    mask: Tensor,
    *,
    mode: CorrectionMode,
    low: float,
    high: float,
    veto: float | None,
) -> tuple[Tensor, Tensor]:
    """Weights (B, T), 0 outside `mask`, and `keep` (B,) bool: replies that were not dropped.

    A dropped reply's weights are 0, so multiplying is enough; the loss goes on counting it unless
    the caller divides by counts of `keep`. `veto` drops, in every mode but none and bypass, a reply
    with a token whose weight is below it. Detached.
    """
    mask = mask.bool()
    ones = mask.to(old_logprobs.dtype)
    keep = torch.ones(len(mask), dtype=torch.bool, device=mask.device)
    if mode in ("none", "bypass"):
        return ones, keep
    log_w = _log_weights(old_logprobs, rollout_logprobs, mask)
    bounded = _bounded_quantity(log_w, mask, mode)  # (B, T) or (B, 1)
    inside = _inside(bounded, mode, low, high)
    if mode in _DROPS_REPLIES:
        keep = inside.squeeze(1)
    if veto is not None:
        keep = keep & ~((log_w.exp() < veto) & mask).any(-1)
    match mode:
        case "token_tis" | "sequence_tis":
            weights = bounded.clamp(low, high)
        case "token_mask":
            weights = bounded * inside
        case "sequence_mask":
            weights = bounded
        case "seq_mask_tis":
            weights = log_w.exp()
        case _:
            weights = ones
    return (weights * ones).masked_fill(~keep[:, None], 0), keep


@torch.no_grad()
def weight_sums(weights: Tensor, mask: Tensor) -> Tensor:
    """(2,) float64, to be added over ranks: sum of weights and number of masked tokens."""
    return torch.stack([masked_sum(weights.double(), mask), mask.bool().sum().double()])


def normalise_weights(weights: Tensor, sums: Tensor) -> Tensor:
    """(B, T): weights over their mean in the whole batch, given added-up `weight_sums`.

    Dropped replies count as zeros: what stays carries the weight of all. A batch without any weight
    left stays 0.
    """
    total, tokens = sums.unbind()
    factor = torch.where(total > 0, tokens / total.clamp(min=1e-30), 1.0)
    return weights * factor.to(weights.dtype)


@torch.no_grad()
def correction_sums(
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    mask: Tensor,
    *,
    mode: CorrectionMode,
    low: float,
    high: float,
) -> tuple[Tensor, Tensor]:
    """What `correction_metrics` needs: `sums` to be added over ranks, `extremes` to be maximised.

    sums (10,) float64; extremes (2,) float64: the negated smallest weight and the largest one. An
    empty mask gives sums of 0 and extremes of -inf, neutral in both reductions.
    """
    mask = mask.bool()
    log_w = _log_weights(old_logprobs, rollout_logprobs, mask).double()
    w = log_w.exp()
    units = mask if mode in ("none", "bypass", "token_tis", "token_mask") else mask.any(-1, True)
    outside = ~_inside(_bounded_quantity(log_w, mask, mode), mode, low, high)
    replies = mask.any(-1)
    parts = {
        "tokens": mask.sum(),
        "weight": masked_sum(w, mask),
        "squared": masked_sum(w.square(), mask),
        "k1": masked_sum(-log_w, mask),
        "k3": masked_sum(w - 1 - log_w, mask),
        "error": masked_sum(log_w.abs().exp(), mask),
        "units": units.sum(),
        "outside": (outside & units).sum(),
        "replies": replies.sum(),
        "ppl_ratio": masked_sum(sequence_mean(-log_w, mask).exp(), replies),
    }
    lowest = (-w).masked_fill(~mask, -torch.inf).max() if mask.any() else w.new_tensor(-torch.inf)
    highest = w.masked_fill(~mask, -torch.inf).max() if mask.any() else w.new_tensor(-torch.inf)
    sums = torch.stack([parts[name].double() for name in _SUMS])
    return sums, torch.stack([lowest, highest])


def correction_metrics(sums: Tensor, extremes: Tensor) -> dict[str, float]:
    """Reduced `correction_sums` -> metrics of the sampler's drift from the learner.

    weight_mean, weight_min, weight_max  of w per token, before any bound
    out_of_bounds  share of the mode's bounded quantities (tokens, or replies) outside the bounds
    kl_k1, kl_k3   KL(sampler || learner) per token, nats
    ppl_ratio      the learner's perplexity of a reply over the sampler's, mean over replies
    chi2, ess      mean(w²) - 1, and the effective number of tokens (sum w)² / sum w²
    error          mean of exp|old - rollout|; above 1.05 the engines disagree

    Empty for a batch without tokens.
    """
    total = dict(zip(_SUMS, sums.tolist(), strict=True))
    negated_min, largest = extremes.tolist()
    tokens = total["tokens"]
    if tokens == 0:
        return {}
    return {
        "correction/weight_mean": total["weight"] / tokens,
        "correction/weight_min": -negated_min,
        "correction/weight_max": largest,
        "correction/out_of_bounds": total["outside"] / total["units"],
        "correction/kl_k1": total["k1"] / tokens,
        "correction/kl_k3": total["k3"] / tokens,
        "correction/ppl_ratio": total["ppl_ratio"] / total["replies"],
        "correction/chi2": total["squared"] / tokens - 1,
        "correction/ess": total["weight"] ** 2 / total["squared"],
        "correction/error": total["error"] / tokens,
    }


def _log_weights(old_logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor) -> Tensor:
    """(B, T): bounded log w, 0 outside the mask."""
    log_w = (old_logprobs - rollout_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return log_w.masked_fill(~mask, 0)


def _bounded_quantity(log_w: Tensor, mask: Tensor, mode: CorrectionMode) -> Tensor:
    """What `mode` holds against its bounds: (B, T) per token or (B, 1) per reply."""
    match mode:
        case "sequence_tis" | "sequence_mask":
            return log_w.sum(-1, keepdim=True).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        case "geometric" | "seq_mask_tis":
            return sequence_mean(log_w, mask)[:, None].exp()
        case "k3":
            return sequence_mean(torch.expm1(log_w) - log_w, mask)[:, None]
        case _:
            return log_w.exp()


def _inside(bounded: Tensor, mode: CorrectionMode, low: float, high: float) -> Tensor:
    below_high = bounded <= high
    return below_high if mode == "k3" else below_high & (bounded >= low)
