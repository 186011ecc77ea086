"""Losses on stored rows: imitation of demonstrations, and the reward model's pairs."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def nll(logprobs: Tensor, mask: Tensor) -> Tensor:
    """(B, T): negative log-likelihood of each demonstrated token, 0 outside `mask`."""
    return (-logprobs).masked_fill(~mask.bool(), 0)


def pair_loss(chosen: Tensor, rejected: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """(P,): Bradley-Terry loss of scores (P,) of the better and the worse reply.

    `label_smoothing` is the assumed share of labels that are the wrong way round; the loss is then
    lowest at a finite margin.
    """
    margin = chosen - rejected
    return (label_smoothing - 1) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


@torch.no_grad()
def pair_sums(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(3,) float64, to be added over ranks: pairs, pairs in the right order, sum of margins."""
    margin = (chosen - rejected).double()
    return torch.stack([torch.ones_like(margin).sum(), (margin > 0).double().sum(), margin.sum()])


def pair_metrics(sums: Tensor) -> dict[str, float]:
    """Added-up `pair_sums` -> `accuracy` (a tie is wrong) and `margin`."""
    pairs, correct, margin = sums.tolist()
    return {"accuracy": correct / max(pairs, 1), "margin": margin / max(pairs, 1)}
