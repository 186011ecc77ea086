from typing import get_args

import pytest
import torch

from configs.schema import AlgorithmConfig
from rl.masking import (
    Aggregation,
    aggregate,
    masked_mean,
    masked_sum,
    moment_sums,
    whiten,
)

X = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
MASK = torch.tensor([[True, True, False], [False, True, False]])


def test_sum_and_mean_see_the_mask_alone():
    assert masked_sum(X, MASK) == 1 + 2 + 5
    assert masked_sum(X, MASK, dim=-1).tolist() == [3, 5]
    assert masked_mean(X, MASK) == pytest.approx(8 / 3)
    assert masked_mean(X, MASK, 16) == 0.5
    assert masked_mean(X, torch.zeros_like(MASK)) == 0


def test_a_nan_in_padding_reaches_neither_value_nor_gradient():
    x = torch.tensor([[1.0, torch.nan], [2.0, torch.inf]], requires_grad=True)
    mask = torch.tensor([[1, 0], [1, 0]])
    loss = aggregate(x, mask, "sequence_mean", num_tokens=2, num_sequences=2)
    loss.backward()
    assert loss.item() == 1.5
    assert x.grad is not None
    assert x.grad.tolist() == [[0.5, 0], [0.5, 0]]


def test_whitening_uses_the_biased_variance_and_can_restore_the_mean():
    x, mask = torch.tensor([[0.5, -1.0, 2.0, 99.0]]), torch.tensor([[1, 1, 1, 0]])
    white = whiten(x, mask)
    assert white[0].tolist() == pytest.approx([0, -1.224745, 1.224745, 0], abs=1e-6)
    restored = whiten(x, mask, restore_mean=True)
    assert restored[0].tolist() == pytest.approx([0.5, -0.724745, 1.724745, 0], abs=1e-6)


def test_halves_whitened_with_added_sums_equal_the_whole():
    whole = whiten(X, MASK)
    sums = moment_sums(X[:1], MASK[:1]) + moment_sums(X[1:], MASK[1:])
    halves = [whiten(X[i : i + 1], MASK[i : i + 1], sums) for i in range(2)]
    torch.testing.assert_close(torch.cat(halves), whole)
    assert sums.tolist() == [3, 8, 1 + 4 + 25]


def test_whitening_far_from_zero_keeps_the_variance():
    x = torch.tensor([[10000.0, 10001.0, 10002.0]])
    white = whiten(x, torch.ones_like(x))
    assert white[0].tolist() == pytest.approx([-1.224745, 0, 1.224745], abs=1e-4)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token_mean", (1 + 2 + 5) / 3),
        ("sequence_mean", (1.5 + 5) / 2),
        ("sequence_sum", (3 + 5) / 2),
        ("constant", (3 + 5) / (2 * 4)),
    ],
)
def test_each_aggregation_gives_its_hand_computed_value(mode, expected):
    loss = aggregate(X, MASK, mode, num_tokens=3, num_sequences=2, longest=4)
    assert loss.item() == pytest.approx(expected)


def test_a_row_without_tokens_adds_nothing():
    mask = torch.tensor([[True, True, False], [False, False, False]])
    loss = aggregate(X, mask, "sequence_mean", num_tokens=2, num_sequences=1)
    assert loss.item() == 1.5


def test_the_modes_are_those_of_the_configuration():
    field = AlgorithmConfig.model_fields["aggregation"]
    assert get_args(Aggregation) == get_args(field.annotation)
