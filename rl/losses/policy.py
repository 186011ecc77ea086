"""The policy's objective per token: plain policy gradient, or an importance ratio with clipping."""

from typing import Literal

import torch
from torch import Tensor

from rl.kl import MAX_LOG_RATIO
from rl.masking import masked_sum, sequence_mean

Ratio = Literal["none", "token", "sequence", "geometric", "cispo"]


def policy_objective(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    ratio: Ratio,
    clip_low: float | None,
    clip_high: float | None,
    dual_clip: float | None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Per-token loss (B, T), to be minimised, and sums (4,) for `policy_metrics`.

    none      -A * logprob: REINFORCE; `old_logprobs` serve the metrics alone
    token     -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = exp(logprob - old) (PPO)
    sequence  the same with one ratio for the whole reply, the product of its tokens' (RLOO in TRL).
              Each of its n tokens holds 1/n of it, so that summing a reply gives it back

    geometric the same with the geometric mean of its tokens' ratios. Each token holds all of it, so
              that averaging a reply gives it back (GSPO)
    cispo     -sg(clip(r)) A * logprob with the token's r: a bound limits a token's weight and never
              its gradient's direction (MiniMax-M1, arXiv 2506.13585)

    While the policy has not moved (r = 1) all of them have one gradient under every aggregation, if
    a reply's tokens share their advantage, as the ratios of a reply require. A bound that is None
    does not bind. `dual_clip` limits the loss to dual_clip * |A| where A < 0. `weights` (B, T) are
    the constants of `rl.correction`.
    """
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask.bool(), 0)
    log_ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    match ratio:
        case "none":
            loss, is_clipped = -advantages * logprobs, torch.zeros_like(mask, dtype=torch.bool)
        case "token":
            loss, is_clipped = _clipped(log_ratio.exp(), advantages, clip_low, clip_high, dual_clip)
        case "sequence":
            r = sequence_ratio(logprobs, old_logprobs, mask)[:, None]  # (B, 1)
            loss, is_clipped = _clipped(r, advantages, clip_low, clip_high, dual_clip)
            loss = loss / mask.bool().sum(-1, keepdim=True).clamp(min=1)
        case "geometric":
            r = sequence_ratio(logprobs, old_logprobs, mask, geometric=True)[:, None]  # (B, 1)
            loss, is_clipped = _clipped(r, advantages, clip_low, clip_high, dual_clip)
        case "cispo":
            r = log_ratio.detach().exp()
            weight = r.clamp(*_bounds(clip_low, clip_high))
            loss, is_clipped = -weight * advantages * logprobs, weight != r
    if weights is not None:
        loss = loss * weights
    return loss.masked_fill(~mask.bool(), 0), _sums(log_ratio, is_clipped, mask)


def sequence_ratio(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, *, geometric: bool = False
) -> Tensor:
    """(B,): product of the masked tokens' ratios, or their geometric mean (GSPO, 2507.18071)."""
    difference = logprobs - old_logprobs
    reduce = sequence_mean(difference, mask) if geometric else masked_sum(difference, mask, dim=-1)
    return reduce.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def policy_metrics(sums: Tensor) -> dict[str, float]:
    """Sums of `policy_objective`, added over ranks and micro-batches -> means over tokens.

    `approx_kl` is k3 of the policy's move since `old_logprobs`, nats per token. Before the
    first update `ratio/mean` is 1 and the other two are 0.
    """
    tokens, clipped, ratio, approx_kl = sums.tolist()
    return {
        "clip_fraction": clipped / max(tokens, 1),
        "ratio/mean": ratio / max(tokens, 1),
        "approx_kl": approx_kl / max(tokens, 1),
    }


def _bounds(clip_low: float | None, clip_high: float | None) -> tuple[float, float]:
    """Where a ratio is clipped; a bound that is None does not bind."""
    low = 0.0 if clip_low is None else 1 - clip_low
    return low, torch.inf if clip_high is None else 1 + clip_high


def _clipped(
    r: Tensor,
    advantages: Tensor,
    clip_low: float | None,
    clip_high: float | None,
    dual_clip: float | None,
) -> tuple[Tensor, Tensor]:
    """Loss and where the clip took effect, in the shape of `advantages`."""
    plain = r * advantages
    clipped = r.clamp(*_bounds(clip_low, clip_high)) * advantages
    objective = torch.minimum(plain, clipped)
    if dual_clip is not None:
        floor = torch.maximum(objective, dual_clip * advantages)
        objective = torch.where(advantages < 0, floor, objective)
    return -objective, (clipped < plain).detach()


@torch.no_grad()
def _sums(log_ratio: Tensor, is_clipped: Tensor, mask: Tensor) -> Tensor:
    """(4,) float64: tokens, clipped tokens, sum of ratios, sum of k3."""
    r = log_ratio.exp()
    mask = mask.bool()
    parts = [
        mask.sum(),
        (is_clipped & mask).sum(),
        masked_sum(r.double(), mask),
        masked_sum((r - 1 - log_ratio).double(), mask),
    ]
    return torch.stack([part.double() for part in parts])
