"""Coefficients per token: policy gradients, imitation, and the reward model's own."""

import torch
from torch import Tensor

from rl.kl import MAX_KL, MAX_LOG_RATIO, KLEstimator
from rl.losses.policy import Ratio
from rl.masking import Aggregation, sequence_mean


def policy_gradient(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    ref_logprobs: Tensor,
    *,
    ratio: Ratio,
    clip_low: float | None,
    clip_high: float | None,
    dual_clip: float | None,
    aggregation: Aggregation,
    mean_length: Tensor | float,
    longest: int,
    kl_coef: float = 0.0,
    kl_estimator: KLEstimator = "k3",
) -> Tensor:
    """(B, T), 0 outside `mask`: of `policy_objective` plus kl_coef `kl_loss` under `aggregate`.

    `mean_length` is num_tokens / num_sequences of the whole step. `kl_coef` is 0 where the KL is
    part of the reward. Constant weights of `rl.correction` would multiply the first term.
    """
    slope = _objective_slope(
        logprobs,
        old_logprobs,
        advantages,
        mask,
        ratio=ratio,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
    )
    if kl_coef > 0:
        slope = slope - kl_coef * _kl_slope(logprobs, ref_logprobs, kl_estimator)
    lengths = mask.bool().sum(-1, keepdim=True).to(slope.dtype)  # (B, 1)
    weight = {
        "token_mean": lengths / mean_length,
        "sequence_mean": torch.ones_like(lengths),
        "sequence_sum": lengths,
        "constant": lengths / longest,
    }[aggregation]
    return (weight * slope).masked_fill(~mask.bool(), 0)


def sft(lengths: Tensor, *, mean_length: Tensor | float) -> Tensor:
    """(B,): |o| over the mean length: every demonstrated token of a step counts the same."""
    return lengths / mean_length


def reward_model(chosen: Tensor, rejected: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """(P, 2): of the gradient of the *scores* of the better and the worse reply."""
    slope = 1 - label_smoothing - torch.sigmoid(chosen - rejected)
    return torch.stack([slope, -slope], -1)


def _objective_slope(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    ratio: Ratio,
    clip_low: float | None,
    clip_high: float | None,
    dual_clip: float | None,
) -> Tensor:
    """(B, T): the advantage times the ratio, 0 where a clip stopped it."""
    low = 0.0 if clip_low is None else 1 - clip_low
    high = torch.inf if clip_high is None else 1 + clip_high
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask.bool(), 0)
    match ratio:
        case "none":
            return advantages
        case "sequence":
            log_ratio = log_ratio.sum(-1, keepdim=True)  # (B, 1)
        case "geometric":
            log_ratio = sequence_mean(log_ratio, mask)[:, None]  # (B, 1)
    r = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    if ratio == "cispo":
        return advantages * r.clamp(low, high)
    is_closed = torch.where(advantages > 0, r > high, r < low) | (log_ratio.abs() > MAX_LOG_RATIO)
    if dual_clip is not None:
        is_closed |= (advantages < 0) & (r > dual_clip)
    return (advantages * r).masked_fill(is_closed, 0)


def _kl_slope(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """(B, T): d `kl_loss` / d logprobs, 0 beyond its bounds."""
    d = logprobs - ref_logprobs
    is_bounded = d.abs() > MAX_LOG_RATIO
    if estimator == "k2":
        return d.masked_fill(is_bounded, 0)
    is_bounded |= torch.expm1(-d) + d > MAX_KL
    return (-torch.expm1(-d)).masked_fill(is_bounded, 0)


RATIO_TEXTS: dict[Ratio, str] = {
    "none": "A",
    "token": "A·ρ·1[open]",
    "sequence": "A·ρ_o·1[open]",
    "geometric": "A·ρ_g·1[open]",
    "cispo": "A·clip(ρ)",
}
_WEIGHT_TEXTS: dict[Aggregation, str] = {
    "token_mean": "(|o|/n̄)",
    "sequence_mean": "",
    "sequence_sum": "|o|",
    "constant": "(|o|/L)",
}
_KL_TEXTS: dict[KLEstimator, str] = {
    "k1": "",
    "k2": " − coef·log(π/π_ref)",
    "k3": " + coef·(π_ref/π − 1)",
}
_ADVANTAGE_TEXTS = {
    "none": "R",
    "gae": "the discounted sum of a critic's TD errors",
    "reward_to_go": "the sum of this token's reward and all later ones",
    "rloo": "R − mean(R of the other replies)",
    "group_centred": "R − mean(R of the group)",
    "group_normalised": "(R − mean(R of the group))/deviation(R of the group)",
    "batch_normalised": "(R − mean(R of the group))/deviation(R of the batch)",
    "greedy_baseline": "R − R of the greedy reply",
    "top1": "1[best]",
}


def policy_text(
    *, ratio: Ratio, aggregation: Aggregation, advantage: str, kl: KLEstimator, is_whitened: bool
) -> str:
    """The formula of `policy_gradient`; `kl` is k1 where the loss has no KL term."""
    weight, slope = _WEIGHT_TEXTS[aggregation], RATIO_TEXTS[ratio] + _KL_TEXTS[kl]
    if weight:
        slope = f"{weight}·({slope})" if _KL_TEXTS[kl] else f"{weight}·{slope}"
    whitened = ", whitened" if is_whitened else ""
    return f"{slope} with A = {_ADVANTAGE_TEXTS[advantage]}{whitened}"


TEXTS = {"sft": "|o|/n̄", "reward_model": "±(1 − label_smoothing − σ(ΔR)) on ∇R, no policy's"}
