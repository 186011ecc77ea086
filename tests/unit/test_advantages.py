import pytest
import torch

from rl.advantages import gae, group_centred, group_normalised, rloo, spread_over_tokens
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


def test_gae_without_critic_and_discount_is_the_reinforce_plus_plus_advantage():
    """A_t = r - beta * sum of k1 from t on."""
    kl = torch.tensor([[0.1, -0.2, 0.3]])
    rewards = token_rewards(torch.tensor([1.0]), kl, torch.ones(1, 3), 0.5)
    advantages, _ = gae(rewards, torch.zeros(1, 3), torch.ones(1, 3), 1.0, 1.0)
    assert advantages[0].tolist() == pytest.approx([0.9, 0.95, 0.85])


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


def test_a_reply_shares_its_advantage_among_its_tokens():
    mask = torch.tensor([[0, 1, 1], [1, 0, 0]])
    spread = spread_over_tokens(torch.tensor([2.0, -1.0]), mask)
    assert spread.tolist() == [[0, 2, 2], [-1, 0, 0]]
