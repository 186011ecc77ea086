"""One reference out of several, for `Replies.ref_logprobs` (MRPO, arXiv 2405.16388).

All log-probs are of whole replies under one tokenizer and negative. The *base* reference is the
policy's own start, the *extra* one another model. `virtual_reference` over
[clip_to_base(extra, base), base] with [a, 1 - a], a = confidence_weights(extra, base), is MRPO; so
does `mixed_reference`.
"""

import torch
from torch import Tensor


@torch.no_grad()
def virtual_reference(references: Tensor, weights: Tensor) -> Tensor:
    """(P, K): -log sum_m weights_m / pi_m, the weighted harmonic mean of `references` (M, P, K),
    log-probs; `weights` (M,) or (M, P, 1) sum to 1 over M.

    Each weight belongs to its own reference, as in the paper's formula. The released code exchanges
    the weights of its two references: give [1 - a, a] for its values. Both agree at 1/2.
    """
    if weights.dim() == 1:
        weights = weights[:, None, None]
    return -torch.logsumexp(weights.log() - references, dim=0)


@torch.no_grad()
def clip_to_base(extra: Tensor, base: Tensor, *, epsilon: float = 0.1) -> Tensor:
    """(P, 2): `extra` held within (1 ± epsilon_c) * `base` (CTRO).

    epsilon_c is epsilon times that side's share of the pair's magnitude |extra + base|, so that the
    chosen and the rejected reply get different widths.
    """
    magnitude = (extra + base).abs()
    width = epsilon * magnitude / magnitude.sum(-1, keepdim=True).clamp(min=1e-6)
    return extra.clamp((1 + width) * base, (1 - width) * base)


@torch.no_grad()
def confidence_weights(extra: Tensor, base: Tensor) -> Tensor:
    """(P, 1): weight of the extra reference, |d_extra| / (|d_extra| + |d_base|) with d the log-prob
    of the chosen less that of the rejected reply (ARWC); 1/2 where neither prefers one.
    """
    extra_gap, base_gap = (x[:, :1].sub(x[:, 1:2]).abs() for x in (extra, base))
    total = extra_gap + base_gap
    return torch.where(total > 0, extra_gap / total.clamp(min=1e-6), 0.5)


@torch.no_grad()
def mixed_reference(
    extra: Tensor, base: Tensor, *, is_by_confidence: bool, clip: float | None
) -> Tensor:
    """(P, K): one reference of `extra` (M, P, K) and `base` (P, K), weights alike or, for M = 1,
    by confidence; `clip` is `clip_to_base`'s epsilon. Both of these look at pairs, K = 2.
    """
    if clip is not None:
        extra = torch.stack([clip_to_base(one, base, epsilon=clip) for one in extra])
    references = torch.stack([*extra, base])
    weights = torch.full((len(references),), 1 / len(references))
    if is_by_confidence:
        share = confidence_weights(extra[0], base)
        weights = torch.stack([share, 1 - share])
    return virtual_reference(references, weights)
