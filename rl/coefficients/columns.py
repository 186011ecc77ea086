"""What the coefficients of pair losses share: which column is which reply, and their difference."""

import torch
from torch import Tensor

from rl.losses.replies import Replies


def gap(values: Tensor) -> Tensor:
    """(P, 1): the chosen reply's value less the rejected one's."""
    return values[:, :1] - values[:, 1:2]


def signs(replies: Replies) -> Tensor:
    """(K,): + for the chosen column 0, - for the rejected column 1, 0 for a further one."""
    column = torch.arange(replies.lengths.shape[-1], device=replies.lengths.device)
    return (column == 0).to(replies.lengths.dtype) - (column == 1).to(replies.lengths.dtype)


def is_chosen(replies: Replies, column: int = 0) -> Tensor:
    """(K,): 1 for the chosen reply, or for that of another `column`."""
    one_hot = torch.zeros_like(replies.lengths[0])
    one_hot[column] = 1
    return one_hot


def is_explored(replies: Replies, explored: Tensor) -> Tensor:
    """(P, K): 1 for the reply in that row's column `explored` (P,) long."""
    return torch.zeros_like(replies.lengths).scatter(1, explored[:, None], 1.0)
