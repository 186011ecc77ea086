from typing import get_args

import pytest
import torch

from configs.schema import GROUPED, AlgorithmConfig
from rl.advantages import (
    GROUP_ESTIMATORS,
    batch_normalised,
    gae,
    greedy_baseline,
    group_advantages,
    group_centred,
    group_normalised,
    nonconstant_groups,
    reward_to_go,
    rloo,
    rows_to_learn_from,
    spread_over_tokens,
    top1,
)
from rl.masking import moment_sums, whiten
from rl.rewards import token_rewards

REWARDS = torch.tensor([[-0.01, 0.02, -0.03, 0.99]])
VALUES = torch.tensor([[0.2, 0.3, 0.1, 0.4]])
ONES = torch.ones(1, 4)
SCORES = torch.tensor([[1.0, 0.0, 0.0, 1.0]])


@pytest.mark.parametrize(
    ("lam", "expected"),
    [(0.95, [0.66852625, 0.608975, 0.8305, 0.59]), (1.0, [0.77, 0.68, 0.86, 0.59])],
)
def test_gae_gives_its_reference_values(lam, expected):
    advantages, returns = gae(REWARDS, VALUES, ONES, 1.0, lam)
    assert advantages[0].tolist() == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(returns, advantages + VALUES)


def test_gae_discounts_values_and_rewards():
    """gamma 0.5, lambda 1: A_t = R_t + R_(t+1)/2 + ... - V_t; 0.99 / 8 - 0.03 / 4 + 0.01 - 0.01."""
    advantages, _ = gae(REWARDS, VALUES, ONES, 0.5, 1.0)
    assert advantages[0, 0].item() == pytest.approx(0.99 / 8 - 0.03 / 4 + 0.01 - 0.01 - 0.2)


def test_gae_is_a_constant_to_autograd():
    advantages, _ = gae(REWARDS, VALUES.clone().requires_grad_(), ONES, 1.0, 0.95)
    assert not advantages.requires_grad


def test_reinforce_plus_plus_charges_each_token_with_the_kl_from_it_on():
    """A_t = r - beta * sum of k1 from t on; then (A - mean) / std over the whole batch."""
    kl = torch.tensor([[0.1, -0.2, 0.3, 9.0], [0.0, 0.4, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    rewards = token_rewards(torch.tensor([1.0, -1.0]), kl, mask, 0.5)
    advantages = reward_to_go(rewards, mask, 1.0)
    expected = [0.9, 0.95, 0.85, 0, -1.2, -1.2, 0, 0]
    assert advantages.flatten().tolist() == pytest.approx(expected)
    # mean 0.06, E[A²] = (0.81 + 0.9025 + 0.7225 + 2 * 1.44) / 5 = 1.063, deviation 1.029272
    white = whiten(advantages, mask)
    assert white[0, 0].item() == pytest.approx((0.9 - 0.06) / 1.029272, abs=1e-5)


def test_reward_to_go_discounts_and_skips_gaps():
    rewards, mask = torch.tensor([[8.0, 99.0, 4.0, 2.0]]), torch.tensor([[1, 0, 1, 1]])
    assert reward_to_go(rewards, mask, 0.5)[0].tolist() == [8 + 2 + 0.5, 0, 4 + 1, 2]


@pytest.mark.parametrize(
    ("advantages", "expected"),
    [
        (group_normalised(SCORES, eps=0.0), 0.866025),
        (group_normalised(SCORES, biased=True, eps=0.0), 1.0),
        (rloo(SCORES), 0.666667),
        (group_centred(SCORES), 0.5),
    ],
)
def test_group_estimators_give_their_reference_values(advantages, expected):
    signs = [expected, -expected, -expected, expected]
    assert advantages[0].tolist() == pytest.approx(signs, abs=1e-6)


def test_std_normalisation_amplifies_a_tiny_difference_and_rloo_does_not():
    scores = torch.tensor([[1.001, 1.0]], dtype=torch.float64)
    normalised = group_normalised(scores, eps=0.0)
    assert normalised[0].tolist() == pytest.approx([0.7071, -0.7071], abs=1e-4)
    assert rloo(scores)[0].tolist() == pytest.approx([0.001, -0.001])


def test_equal_scores_give_exactly_zero_without_a_guard_in_eps():
    scores = torch.full((1, 7), 0.7)  # their float32 mean is off by 6e-8
    assert group_normalised(scores, eps=0.0).tolist() == [[0] * 7]


def test_batch_normalised_divides_by_the_deviation_of_all_scores():
    """Scores 1 0 0 1 3 3 3 3: mean 1.75, mean square 4.75, deviation sqrt(1.6875) = 1.299038."""
    scores = torch.cat([SCORES, torch.full((1, 4), 3.0)])
    sums = moment_sums(scores)
    advantages = batch_normalised(scores, sums, eps=0.0)
    expected = 0.5 / 1.299038
    assert advantages[0].tolist() == pytest.approx([expected, -expected, -expected, expected])
    assert advantages[1].tolist() == [0] * 4
    for rows in (slice(0, 1), slice(1, 2)):  # a group alone, with the sums of the step
        assert torch.equal(batch_normalised(scores[rows], sums, eps=0.0), advantages[rows])


def test_the_greedy_reply_is_the_baseline_of_its_group():
    advantages = greedy_baseline(torch.tensor([[0.75, 0.25, 0.5], [1.0, 1.0, 3.0]]))
    assert advantages.tolist() == [[0.25, -0.25, 0], [-2, -2, 0]]


def test_top1_is_the_first_of_the_best():
    chosen = top1(torch.tensor([[0.0, 2.0, 2.0], [5.0, 5.0, 5.0], [-3.0, -2.0, -1.0]]))
    assert chosen.tolist() == [[False, True, False], [True, False, False], [False, False, True]]


def test_groups_of_equal_scores_are_constant():
    scores = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.5]])
    assert nonconstant_groups(scores).tolist() == [False, True]


def test_every_grouped_estimator_of_the_configuration_has_its_function():
    values = get_args(AlgorithmConfig.model_fields["advantage"].annotation)
    assert set(GROUP_ESTIMATORS) == set(GROUPED)
    assert set(values) == {"none", "gae", "reward_to_go", *GROUPED}


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("rloo", [1.0, -1.0], [-1.5, 0.0, 1.5]),
        ("group_centred", [0.5, -0.5], [-1.0, 0.0, 1.0]),
        ("group_normalised", [0.70701, -0.70701], [-0.9999, 0.0, 0.9999]),
        ("batch_normalised", [0.490242, -0.490242], [-0.980484, 0.0, 0.980484]),
        ("greedy_baseline", [1.0, 0.0], [-2.0, -1.0, 0.0]),
        ("top1", [1.0, 0.0], [0.0, 0.0, 1.0]),
    ],
)
def test_group_advantages_go_back_to_the_rows_of_groups_of_any_size(name, first, second):
    """Rows 0 and 3 are one group, scored 1 0, and rows 1, 2 and 4 the other, scored 1 2 3.

    All scores have mean 1.4, mean square 3 and deviation sqrt(1.04) = 1.019804; eps is 1e-4.
    """
    scores = torch.tensor([1.0, 1.0, 2.0, 0.0, 3.0])
    advantages = group_advantages(name, scores, [[0, 3], [1, 2, 4]], moment_sums(scores))
    assert advantages[[0, 3]].tolist() == pytest.approx(first, abs=1e-5)
    assert advantages[[1, 2, 4]].tolist() == pytest.approx(second, abs=1e-5)


def test_raft_learns_from_the_best_and_a_filter_drops_constant_groups():
    scores, groups = torch.tensor([1.0, 2.0, 0.0, 2.0, 2.0]), [[0, 3, 2], [1, 4]]
    rows = {name: rows_to_learn_from(name, scores, groups) for name in ("top1", "rloo")}
    assert rows["top1"].tolist() == [False, True, False, True, False]
    assert rows["rloo"].all()
    filtered = rows_to_learn_from("rloo", scores, groups, filter_groups=True)
    assert filtered.tolist() == [True, False, True, True, False]


def test_a_reply_shares_its_advantage_among_its_tokens():
    mask = torch.tensor([[0, 1, 1], [1, 0, 0]])
    spread = spread_over_tokens(torch.tensor([2.0, -1.0]), mask)
    assert spread.tolist() == [[0, 2, 2], [-1, 0, 0]]
