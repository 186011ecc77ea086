import random

import numpy as np
import pytest
import torch

from rl.batching import MULTIPLE, micro_batches, pad_tokens, padded_length, place_after


def test_lengths_are_padded_to_the_next_multiple_of_eight():
    assert [padded_length(length) for length in (1, 7, 8, 9, 16, 17)] == [8, 8, 8, 16, 16, 24]


def test_micro_batches_by_hand():
    # Longest first: 20 is padded to 24, so two rows fill 48; then 9 to 16, three rows of it fit.
    lengths = [3, 20, 9, 18, 5, 1]
    assert micro_batches(lengths, range(6), 48) == [[1, 3], [2, 4, 0], [5]]


def test_only_the_rows_asked_for_are_batched():
    assert micro_batches([3, 20, 9, 18], [2, 0], 64) == [[2, 0]]
    assert micro_batches([3, 20], [], 64) == []


def test_a_row_above_the_budget_goes_alone():
    assert micro_batches([100, 2, 3], range(3), 16) == [[0], [2, 1]]


@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_in_one_batch_within_the_budget(seed):
    rng = random.Random(seed)
    lengths = [rng.randint(1, 60) for _ in range(rng.randint(1, 40))]
    rows = rng.sample(range(len(lengths)), rng.randint(1, len(lengths)))
    budget = rng.randint(1, 400)
    groups = micro_batches(lengths, rows, budget)
    assert sorted(row for group in groups for row in group) == sorted(rows)
    for group in groups:
        size = len(group) * padded_length(max(lengths[row] for row in group))
        assert size <= budget or len(group) == 1


def test_equal_lengths_keep_their_order_so_ranks_and_runs_agree():
    assert micro_batches([4, 4, 4, 4], [2, 0, 3, 1], 16) == [[0, 1], [2, 3]]


def test_tokens_are_padded_on_the_right_to_one_width():
    padded = pad_tokens([[5, 6, 7], np.array([8], np.int32)], pad_token_id=2)
    assert padded.dtype == torch.int64
    assert padded.tolist() == [[5, 6, 7, 2, 2, 2, 2, 2], [8, 2, 2, 2, 2, 2, 2, 2]]
    assert pad_tokens([list(range(MULTIPLE + 1))], 0).shape == (1, 2 * MULTIPLE)


def test_values_are_placed_behind_their_starts():
    values = [np.array([1.5, 2.5], np.float32), np.array([], np.float32), np.array([3.5])]
    placed = place_after([1, 4, 0], values, 4, torch.float32)
    assert placed.tolist() == [[0, 1.5, 2.5, 0], [0, 0, 0, 0], [3.5, 0, 0, 0]]
    assert placed.dtype == torch.float32


def test_values_that_do_not_fit_are_an_error():
    with pytest.raises(RuntimeError, match="expanded size"):
        place_after([3], [np.ones(2)], 4, torch.float32)


def test_read_only_arrays_of_the_object_store_can_be_placed():
    values = np.ones(2, np.float32)
    values.flags.writeable = False
    assert place_after([0], [values], 2, torch.bool).tolist() == [[True, True]]
