import statistics

import pytest
import torch

from rl.masking import moment_sums
from rl.rewards import (
    RunningMoments,
    clip_scores,
    combine_rewards,
    last_valid_index,
    penalise_missing_eos,
    penalise_overlong,
    read_scores,
    shaped_scores,
    token_rewards,
)


def t(*values):
    return torch.tensor(values)


def test_rewards_are_summed_by_weight_and_parts_weigh_nothing():
    rewards = {"gold": t(1.0, 2.0), "gold/polite": t(50.0, 50.0), "length": t(4.0, 0.0)}
    combined = combine_rewards(rewards, {"gold": 1.0, "length": -0.5})
    assert combined.tolist() == [-1, 2]


@pytest.mark.parametrize(
    "weights", [{}, {"gold": 1.0, "other": 1.0}, {"other": 1.0}, {"gold/polite": 1.0}]
)
def test_names_and_weights_that_do_not_match_are_refused_by_name(weights):
    with pytest.raises(ValueError, match=r"feedback\.rewards.*'gold'.*exactly one weight"):
        combine_rewards({"gold": t(1.0), "gold/polite": t(1.0)}, weights)


def test_an_unfinished_reply_pays_the_penalty_and_scores_are_clipped():
    scores = penalise_missing_eos(t(0.5, 0.5), torch.tensor([True, False]), 1.0)
    assert scores.tolist() == [0.5, -0.5]
    assert clip_scores(t(-12.0, 3.0, 11.0), 10).tolist() == [-10, 3, 10]
    assert clip_scores(t(-12.0), None).tolist() == [-12]


def test_the_soft_length_penalty_grows_over_the_last_tokens():
    lengths = torch.tensor([1, 6, 7, 8, 10, 12])
    scores = penalise_overlong(torch.full((6,), 2.0), lengths, 10, 4)
    assert scores.tolist() == [2, 2, 1.75, 1.5, 1, 1]
    dapo = penalise_overlong(torch.zeros(3), torch.tensor([16384, 18432, 20480]), 20480, 4096)
    assert dapo.tolist() == [0, -0.5, -1]


def test_running_moments_equal_those_of_all_scores_at_once():
    batches = [[1.0, 4.0, 2.0], [], [10.0], [-3.0, 0.5]]
    state = RunningMoments()
    for batch in batches:
        state = state.updated(moment_sums(torch.tensor(batch)))
    everything = [score for batch in batches for score in batch]
    assert state.count == 6
    assert state.mean == pytest.approx(statistics.fmean(everything))
    assert state.m2 / 6 == pytest.approx(statistics.pvariance(everything))
    expected = (4 - statistics.fmean(everything)) / statistics.pstdev(everything)
    assert state.normalise(t(4.0)).item() == pytest.approx(expected)


def test_equal_scores_normalise_to_zero_and_no_scores_change_nothing():
    scores = torch.full((3,), 0.1)
    state = RunningMoments().updated(moment_sums(scores))
    assert state.normalise(scores).abs().max() < 1e-3
    assert RunningMoments().normalise(scores).equal(scores)


def test_token_rewards_give_the_reference_values():
    kl = t(0.1, -0.05, 0.2)[None]
    rewards = token_rewards(t(0.8), kl, torch.ones(1, 3), 0.05)
    assert rewards[0].tolist() == pytest.approx([-0.005, 0.0025, 0.79])


def test_the_last_valid_token_earns_the_score_across_gaps_and_padding():
    mask = torch.tensor([[0, 1, 0, 1, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    rewards = token_rewards(t(1.0, 2.0, 3.0), torch.ones(3, 5), mask, 0.1)
    expected = [[0, -0.1, 0, 0.9, 0], [0, -0.1, 1.9, 0, 0], [0, 0, 0, 0, 0]]
    torch.testing.assert_close(rewards, torch.tensor(expected))
    assert last_valid_index(mask).tolist() == [3, 2, -1]


def test_a_reply_as_one_action_pays_the_sum_of_its_kl():
    mask = torch.tensor([[1, 1, 0], [0, 1, 0]])
    kl = torch.tensor([[0.5, 0.25, 9.0], [9.0, -0.5, 9.0]])
    assert shaped_scores(t(1.0, 1.0), kl, mask, 0.2).tolist() == pytest.approx([0.85, 1.1])


def test_an_empty_sequence_has_no_score_and_is_refused_by_row():
    with pytest.raises(ValueError, match="row 1 has no token"):
        read_scores(torch.zeros(2, 3), torch.tensor([[1, 0, 0], [0, 0, 0]]))
