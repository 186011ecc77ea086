"""Hidden states -> per-token log-probs and entropy; the only place where tokens are shifted.

The logits of a batch are its largest tensor by far: at V = 150 000 one row in float32 is 0.6 MB.
Here they exist for `chunk_size` rows at a time, in forward and in backward; between the two only
the inputs and two numbers per row are kept, and the backward pass makes the logits again.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, kw_only=True, eq=False)
class NextTokenLayout:
    """Which hidden state predicts which token, for the tokens that need a log-prob.

    Row `i` of every flat tensor speaks about one token at `(b, t)`: its hidden state sits at
    `(b, t - 1)`, because a model's output at a position is about the next one.

    >>> # layout = next_token_layout(tokens, response_mask)
    >>> # logprobs, _ = head_logprobs(layout.select(hidden), weight, None, layout.targets, 1.0)
    >>> # layout.scatter(logprobs)                                # (B, T), 0 where not needed
    """

    sources: Tensor
    """(N,) int64. Index of the hidden state in the flattened (B * T)."""
    targets: Tensor
    """(N,) int64. The token to be predicted."""
    shape: tuple[int, int]
    """(B, T)."""

    def select(self, hidden: Tensor) -> Tensor:
        """(B, T, ...) -> (N, ...): outputs one position before each needed token."""
        return hidden.flatten(0, 1).index_select(0, self.sources)

    def scatter(self, rows: Tensor) -> Tensor:
        """(N,) -> (B, T): each row back at its token's own index, 0 elsewhere."""
        flat = rows.new_zeros(self.shape[0] * self.shape[1])
        return flat.index_copy(0, self.sources + 1, rows).view(self.shape)


def next_token_layout(tokens: Tensor, needed: Tensor) -> NextTokenLayout:
    """The layout for the tokens (B, T) that `needed` (B, T) marks.

    Index 0 has no predecessor: it is never predicted and always scatters to 0.
    """
    row, column = needed[:, 1:].bool().nonzero(as_tuple=True)
    return NextTokenLayout(
        sources=row * tokens.shape[1] + column,
        targets=tokens[:, 1:][row, column].long(),
        shape=(tokens.shape[0], tokens.shape[1]),
    )


def head_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    chunk_size: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target and entropy (nats) of softmax((hidden @ weight.T + bias) / T).

    hidden (N, H), weight (V, H), bias (V,) or None, targets (N,) int64 -> two (N,) tensors in
    float32 (float64 for float64 inputs), both differentiable. Half-precision inputs are multiplied
    with float32 accumulation and everything after the product is float32.

    `weight` and `bias` may be leaves whose `.data` is exchanged between forward and backward, as
    ZeRO-3 does: they are saved as themselves and must hold their full values in both passes.
    """
    inputs = [hidden, weight] if bias is None else [hidden, weight, bias]
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return _HeadLogprobs.apply(hidden, weight, bias, targets, temperature, chunk_size)
    logprobs, entropy, _ = _forward_rows(hidden, weight, bias, targets, temperature, chunk_size)
    return logprobs, entropy


def _maths_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _operand_dtype(weight: Tensor) -> torch.dtype:
    """What matrix products read: CUDA multiplies half precision into float32, the CPU does not."""
    return weight.dtype if weight.is_cuda else _maths_dtype(weight)


def _matmul(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    return a @ b if a.dtype == dtype else torch.mm(a, b, out_dtype=dtype)


def _add_matmul(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b; without a temporary where dtypes agree."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += torch.mm(a, b, out_dtype=total.dtype)


def _scaled_logits(rows: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = _matmul(rows, weight.T, _maths_dtype(weight))  # (C, V)
    if bias is not None:
        logits += bias
    return logits.div_(temperature)


def _forward_rows(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) each: log-probs, entropy and log-sum-exp of the scaled logits."""
    results = torch.empty(3, len(hidden), dtype=_maths_dtype(weight), device=hidden.device)
    operand = weight.detach().to(_operand_dtype(weight))
    for start in range(0, len(hidden), chunk_size):
        rows = slice(start, start + chunk_size)
        chunk = hidden[rows].detach().to(operand.dtype)
        logp = _scaled_logits(chunk, operand, bias if bias is None else bias.detach(), temperature)
        lse = logp.logsumexp(-1, keepdim=True)
        logp -= lse
        results[0, rows] = logp.gather(-1, targets[rows, None]).squeeze(-1)
        results[1, rows] = -torch.linalg.vecdot(logp.exp(), logp)
        results[2, rows] = lse.squeeze(-1)
    logprobs, entropy, logsumexp = results.unbind()
    return logprobs.clone(), entropy.clone(), logsumexp.clone()


class _HeadLogprobs(torch.autograd.Function):
    """With z the scaled logits, p their softmax, y the target and H the entropy:

    d logp_y / dz_j = [j = y] - p_j        d H / dz_j = -p_j (log p_j + H)
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropy, lse = _forward_rows(
            hidden, weight, bias, targets, temperature, chunk_size
        )
        ctx.save_for_backward(hidden, weight, bias, targets, lse, entropy)
        ctx.temperature, ctx.chunk_size = temperature, chunk_size
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator drops names
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, lse, entropy = ctx.saved_tensors
        grad_logprobs, grad_entropy = (grad[:, None] for grad in grads)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        dtype = _maths_dtype(weight)
        operand = weight.detach().to(_operand_dtype(weight))
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=dtype) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=dtype) if need_bias else None
        for start in range(0, len(hidden), ctx.chunk_size):
            rows = slice(start, start + ctx.chunk_size)
            chunk = hidden[rows].to(operand.dtype)
            logp = _scaled_logits(chunk, operand, bias, ctx.temperature).sub_(lse[rows, None])
            probs = logp.exp()  # (C, V)
            slope = logp.add_(entropy[rows, None]).mul_(-grad_entropy[rows])
            slope = slope.sub_(grad_logprobs[rows]).mul_(probs)
            slope.scatter_add_(-1, targets[rows, None], grad_logprobs[rows].to(dtype))
            slope.div_(ctx.temperature)
            if grad_bias is not None:
                grad_bias += slope.sum(0)
            slope = slope.to(operand.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = _matmul(slope, operand, dtype).to(hidden.dtype)
            if grad_weight is not None:
                _add_matmul(grad_weight, slope.T, chunk)
        return (
            grad_hidden,
            grad_weight.to(weight.dtype) if grad_weight is not None else None,
            grad_bias.to(bias.dtype) if grad_bias is not None else None,
            None,
            None,
            None,
        )
