"""T5.3: the closed-form coefficient of each method is the derivative of its loss."""

import pytest
import torch

from rl import coefficients
from rl.advantages import group_normalised, rloo, spread_over_tokens
from rl.kl import k3
from rl.losses.pointwise import kto
from rl.losses.policy import policy_objective
from rl.losses.preference import slic
from rl.losses.rpo import rpo
from rl.losses.supervised import nll
from tests.unit.made_up_replies import F64, gradient, random_replies

PLAIN = {"clip_low": None, "clip_high": None, "dual_clip": None}


def assert_coefficient(delta, loss, row):
    """delta / |o| is the direction in which descent on `loss` moves each reply's log-prob."""
    slope = gradient(loss, row)
    assert slope.abs().max() > 0
    torch.testing.assert_close(delta.detach() / row.lengths, -slope, atol=1e-10, rtol=0)


def tokens(seed=0):
    """(3, 4) log-probs with gradient, old ones, reference ones, and a mask."""
    g = torch.Generator().manual_seed(seed)
    logprobs, old, ref = -torch.rand(3, 3, 4, generator=g, dtype=F64)
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0]])
    return logprobs.requires_grad_(), old, ref, mask


def slope_of(per_token, logprobs):
    (slope,) = torch.autograd.grad(per_token.sum(), logprobs)
    return slope


def test_imitation_counts_each_token_of_a_kept_reply_once():
    logprobs, *_, mask = tokens()
    lengths = mask.sum(-1)
    is_kept = torch.tensor([True, False, True])
    loss = nll(logprobs, mask & is_kept[:, None]).sum(-1) / lengths  # a mean over tokens
    delta = spread_over_tokens(coefficients.sft(is_kept) / lengths, mask)
    torch.testing.assert_close(-slope_of(loss, logprobs), delta, check_dtype=False)


def test_critic_free_policy_gradients_weigh_a_reply_by_its_length_and_advantage():
    logprobs, old, _, mask = tokens()
    advantages = rloo(torch.tensor([[1.0, 0.2, -2.0]], dtype=F64))[0]
    per_token = spread_over_tokens(advantages, mask)
    loss, _ = policy_objective(logprobs, old, per_token, mask, ratio="none", **PLAIN)
    lengths = mask.sum(-1)
    delta = spread_over_tokens(coefficients.reinforce(lengths, advantages) / lengths, mask)
    torch.testing.assert_close(-slope_of(loss, logprobs), delta)


def clipped(advantages):
    logprobs, old, ref, mask = tokens()
    bounds = {"clip_low": 0.2, "clip_high": 0.3}
    loss, _ = policy_objective(
        logprobs, old, advantages, mask, ratio="token", dual_clip=None, **bounds
    )
    delta = coefficients.ppo(logprobs.detach(), old, advantages, **bounds)
    return logprobs, ref, mask, loss, delta


def test_ppo_multiplies_the_advantage_by_the_ratio_where_the_clip_is_open():
    advantages = torch.randn(3, 4, generator=torch.Generator().manual_seed(9), dtype=F64)
    logprobs, _, mask, loss, delta = clipped(advantages)
    is_closed = (delta == 0) & mask.bool()
    assert is_closed.any()
    assert (delta != 0).any()
    torch.testing.assert_close(-slope_of(loss, logprobs), delta * mask)


def test_grpo_adds_the_slope_of_k3():
    scores = torch.tensor([[1.0, 0.2, -2.0]], dtype=F64)
    *_, mask = tokens()
    advantages = spread_over_tokens(group_normalised(scores)[0], mask)
    logprobs, ref, mask, loss, delta = clipped(advantages)
    loss = loss + 0.04 * k3(logprobs, ref) * mask
    ours = coefficients.grpo(delta, logprobs.detach(), ref, beta=0.04)
    torch.testing.assert_close(-slope_of(loss, logprobs), ours * mask)


def test_dpo():
    row = random_replies(6, 2)
    assert_coefficient(coefficients.dpo(row, beta=0.3), rpo(row, target="hard", beta=0.3), row)


def test_ipo():
    row, tau = random_replies(6, 2), 0.4
    loss = rpo(row, distance="sq", target="margin", margin=0.5, beta=tau, scale=2 / tau**2)
    assert_coefficient(coefficients.ipo(row, tau=tau), loss, row)


def test_simpo():
    row = random_replies(6, 2)
    loss = rpo(row, target="hard", implicit="mean_logprob", beta=2.0, gamma=0.7)
    assert_coefficient(coefficients.simpo(row, beta=2.0, gamma=0.7), loss, row)


def test_slic_pushes_only_where_the_margin_is_violated_and_imitates_everywhere():
    row = random_replies(12, 2)
    loss = slic(row, delta=1.0, weight=0.1)
    gap = row.logprobs[:, 0] - row.logprobs[:, 1]
    assert (gap < 1).any()
    assert (gap > 1).any()
    assert_coefficient(coefficients.slic(row, delta=1.0, weight=0.1), loss, row)


def test_kto():
    row, z = random_replies(6, 3), torch.tensor(0.4, dtype=F64)
    options = {"beta": 0.5, "desirable": 1.3, "undesirable": 0.7}
    assert (row.scores > 0.5).any()
    assert_coefficient(coefficients.kto(row, z, **options), kto(row, z, **options), row)


@pytest.mark.parametrize("distance", ["sq", "bwd", "fwd", "ce"])
@pytest.mark.parametrize("k", [2, 4])
def test_rpo(distance, k):
    row = random_replies(6, k)
    options = {"distance": distance, "beta": 0.3, "eta": 1.7}
    assert_coefficient(coefficients.rpo(row, **options), rpo(row, **options), row)
