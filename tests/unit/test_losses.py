import math
from typing import get_args

import pytest
import torch

from configs.schema import AlgorithmConfig
from rl.advantages import group_advantages, rows_to_learn_from, spread_over_tokens
from rl.losses.policy import Ratio, policy_metrics, policy_objective, sequence_ratio
from rl.losses.supervised import nll, pair_loss, pair_metrics, pair_sums
from rl.losses.value import explained_variance, value_loss, value_sums
from rl.masking import Aggregation, aggregate, moment_sums

RATIOS = get_args(Ratio)


def objective(
    logprobs,
    advantages,
    ratio: Ratio = "token",
    clip: float | None = 0.2,
    dual_clip=None,
    mask=None,
    weights=None,
):
    """Policy objective of one reply whose old log-probs are 0."""
    logprobs = torch.as_tensor(logprobs)[None]
    mask = torch.ones_like(logprobs) if mask is None else torch.tensor([mask])
    return policy_objective(
        logprobs,
        torch.zeros_like(logprobs),
        torch.tensor(advantages)[None],
        mask,
        ratio=ratio,
        clip_low=clip,
        clip_high=clip,
        dual_clip=dual_clip,
        weights=None if weights is None else torch.tensor([weights]),
    )


def test_the_ratios_are_those_of_the_configuration():
    assert get_args(AlgorithmConfig.model_fields["ratio"].annotation) == RATIOS


@pytest.mark.parametrize(
    ("advantage", "loss", "slope"), [(1.0, -1.2, 0.0), (-1.0, 1.349859, 1.349859)]
)
def test_clip_gives_its_reference_values_and_stops_the_gradient(advantage, loss, slope):
    logprobs = torch.tensor([0.3], requires_grad=True)
    per_token, _ = objective(logprobs, [advantage])
    per_token.sum().backward()
    assert per_token.item() == pytest.approx(loss, abs=1e-6)
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(slope, abs=1e-6)


def test_dual_clip_bounds_the_loss_of_negative_advantages_alone():
    log_5 = math.log(5.0)
    assert objective([log_5], [-1.0], dual_clip=3.0)[0].item() == pytest.approx(3.0)
    assert objective([log_5], [-1.0])[0].item() == pytest.approx(5.0)
    assert objective([log_5], [1.0], dual_clip=3.0)[0].item() == pytest.approx(-1.2)


def test_bounds_that_are_none_do_not_bind():
    loss, sums = objective([2.0, -2.0], [1.0, -1.0], clip=None)
    assert loss[0].tolist() == pytest.approx([-math.exp(2), math.exp(-2)])
    assert policy_metrics(sums)["clip_fraction"] == 0


def test_low_and_high_clip_bind_on_their_own_side():
    logprobs = torch.tensor([[1.0, -1.0]])
    loss, _ = policy_objective(
        logprobs,
        torch.zeros(1, 2),
        torch.tensor([[1.0, -1.0]]),
        torch.ones(1, 2),
        ratio="token",
        clip_low=0.2,
        clip_high=0.28,
        dual_clip=None,
    )
    assert loss[0].tolist() == pytest.approx([-1.28, 0.8])


def test_log_ratios_are_bounded_at_20():
    assert objective([90.0], [-1.0])[0].item() == pytest.approx(math.exp(20), rel=1e-5)


def test_without_ratio_the_loss_is_reinforce():
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss, _ = objective(logprobs, [0.5, -3.0], ratio="none")
    loss.sum().backward()
    assert loss[0].tolist() == [0.5, -6.0]
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-0.5, 3.0]


def test_a_sequence_ratio_is_the_product_and_a_reply_sums_to_one_loss():
    mask, log_2 = [1, 1, 0], math.log(2.0)
    loss, _ = objective([log_2, log_2, 7.0], [-1.5] * 3, "sequence", mask=mask)
    assert loss.sum().item() == pytest.approx(4 * 1.5)
    loss, sums = objective([log_2, log_2, 7.0], [1.5] * 3, "sequence", mask=mask)
    assert loss.sum().item() == pytest.approx(-1.2 * 1.5)
    assert policy_metrics(sums)["clip_fraction"] == 1


def test_geometric_sequence_ratio_gives_the_gspo_reference_value():
    log_ratio, mask = torch.tensor([[0.1, -0.2, 0.3, 5.0]]), torch.tensor([[1, 1, 1, 0]])
    ratio = sequence_ratio(log_ratio, torch.zeros(1, 4), mask, geometric=True)
    assert ratio.item() == pytest.approx(1.068939, abs=1e-6)
    product = sequence_ratio(log_ratio, torch.zeros(1, 4), mask)
    assert product.item() == pytest.approx(math.exp(0.2))


@pytest.mark.parametrize(
    ("clip", "loss", "slope"), [(None, -1.068939, -1.068939), (0.05, -1.05, 0.0)]
)
def test_gspo_clips_one_ratio_for_the_reply_and_its_gradient_reaches_every_token(clip, loss, slope):
    """Each of 3 tokens holds the loss of the reply; of their sum, each token gets 3 / 3 slopes."""
    logprobs = torch.tensor([0.1, -0.2, 0.3, 5.0], requires_grad=True)
    per_token, sums = objective(logprobs, [1.0] * 4, "geometric", clip, mask=[1, 1, 1, 0])
    per_token.sum().backward()
    assert per_token[0].tolist() == pytest.approx([loss] * 3 + [0], abs=1e-6)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([slope] * 3 + [0], abs=1e-6)
    assert policy_metrics(sums)["clip_fraction"] == (clip is not None)


@pytest.mark.parametrize(("advantage", "log_r", "weight"), [(2.0, 1.0, 1.2), (-1.0, -1.0, 0.8)])
def test_cispo_keeps_the_gradient_of_a_clipped_token_and_ppo_does_not(advantage, log_r, weight):
    gradients: dict[Ratio, float] = {}
    for ratio in ("token", "cispo"):
        logprobs = torch.tensor([log_r], requires_grad=True)
        loss, sums = objective(logprobs, [advantage], ratio)
        loss.sum().backward()
        assert policy_metrics(sums)["clip_fraction"] == 1
        assert logprobs.grad is not None
        gradients[ratio] = logprobs.grad.item()
    assert gradients["token"] == 0
    assert gradients["cispo"] == pytest.approx(-weight * advantage)


def test_cispo_weighs_a_token_inside_its_bounds_by_its_ratio_alone():
    logprobs = torch.tensor([0.1, -0.1], requires_grad=True)
    loss, sums = objective(logprobs, [1.0, -1.0], "cispo")
    loss.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-math.exp(0.1), math.exp(-0.1)])
    assert loss[0].tolist() == pytest.approx([-0.1 * math.exp(0.1), -0.1 * math.exp(-0.1)])
    assert policy_metrics(sums)["clip_fraction"] == 0


def test_rafts_gradient_is_that_of_imitating_the_best_reply():
    """Replies of 2, 3 and 1 tokens; the second is the best."""
    start = torch.tensor([[-1.0, -2.0, 0.0], [-0.5, -0.1, -3.0], [-4.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]]).bool()
    scores, groups = torch.tensor([0.3, 0.9, -2.0]), [[0, 1, 2]]
    advantages = group_advantages("top1", scores, groups, moment_sums(scores))
    kept = mask & rows_to_learn_from("top1", scores, groups)[:, None]
    logprobs = start.clone().requires_grad_()
    loss, _ = policy_objective(
        logprobs, start, spread_over_tokens(advantages, mask), kept,
        ratio="none", clip_low=None, clip_high=None, dual_clip=None,
    )  # fmt: skip
    counts = {"num_tokens": kept.sum(), "num_sequences": kept.any(-1).sum()}
    aggregate(loss, kept, "token_mean", **counts).backward()
    imitated = start[1:2].clone().requires_grad_()
    nll(imitated, mask[1:2]).mean().backward()
    assert logprobs.grad is not None
    assert imitated.grad is not None
    torch.testing.assert_close(logprobs.grad[1:2], imitated.grad)
    assert imitated.grad.any()
    assert not logprobs.grad[[0, 2]].any()


@pytest.mark.parametrize("mode", get_args(Aggregation))
def test_all_ratios_have_one_gradient_before_the_policy_moves(mode):
    start = torch.tensor([[-1.0, -2.0, 0.0], [-0.5, -0.1, -3.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    advantages = torch.tensor([[0.7] * 3, [-1.1] * 3])
    grads = []
    for ratio in RATIOS:
        logprobs = start.clone().requires_grad_()
        loss, _ = policy_objective(
            logprobs, start, advantages, mask, ratio=ratio, clip_low=0.2, clip_high=0.2,
            dual_clip=3.0,
        )  # fmt: skip
        aggregate(loss, mask, mode, num_tokens=5, num_sequences=2, longest=7).backward()
        grads.append(logprobs.grad)
    for other in grads[1:]:
        torch.testing.assert_close(other, grads[0])


@pytest.mark.parametrize("ratio", RATIOS)
def test_weights_multiply_the_loss_and_padding_adds_nothing(ratio):
    advantages, mask = [1.0] * 3, [1, 1, 0]
    plain, _ = objective([0.1, 0.1, 0.0], advantages, ratio, mask=mask)
    weighted, _ = objective(
        [0.1, 0.1, math.nan], advantages, ratio, mask=mask, weights=[2.0, 0.0, 9.0]
    )
    assert plain[0, 0] != 0
    assert plain[0, 2] == 0
    assert weighted[0].tolist() == pytest.approx([2 * plain[0, 0].item(), 0, 0])


def test_policy_metrics_are_means_over_the_tokens_of_all_parts():
    """ratios 1.5 (clipped, A > 0), 1 and 0.5 (A > 0: the clip has no effect)."""
    _, first = objective([math.log(1.5), 0.0, 5.0], [1.0] * 3, mask=[1, 1, 0])
    _, second = objective([math.log(0.5)], [1.0])
    metrics = policy_metrics(first + second)
    assert metrics["clip_fraction"] == pytest.approx(1 / 3)
    assert metrics["ratio/mean"] == pytest.approx(1)
    k3 = (0.5 - math.log(1.5)) + 0 + (-0.5 - math.log(0.5))
    assert metrics["approx_kl"] == pytest.approx(k3 / 3, abs=1e-6)


def test_value_loss_is_half_the_larger_of_both_squared_errors():
    values, old = torch.tensor([1.0, 1.0, 0.1]), torch.zeros(3)
    returns = torch.tensor([1.0, -1.0, 1.0])
    loss = value_loss(values, old, returns, 0.2)
    assert loss.tolist() == pytest.approx([0.5 * 0.8**2, 0.5 * 4, 0.5 * 0.81])
    assert value_loss(values, old, returns, None).tolist() == pytest.approx([0, 2, 0.405])


def test_a_value_beyond_its_clip_gets_no_gradient_towards_the_return():
    values = torch.tensor([0.5, -0.5, 0.0], requires_grad=True)
    value_loss(values, torch.zeros(3), torch.ones(3), 0.2).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([0, -1.5, -1])


def test_explained_variance_is_1_for_a_perfect_critic_and_0_for_a_constant_one():
    returns, mask = torch.tensor([[1.0, 2.0, 6.0, 99.0]]), torch.tensor([[1, 1, 1, 0]])
    perfect, constant = returns.clone(), torch.full_like(returns, -7.0)
    assert explained_variance(value_sums(perfect, returns, mask)) == pytest.approx(1)
    assert explained_variance(value_sums(constant, returns, mask)) == pytest.approx(0)
    half = value_sums(returns / 2, returns, mask)
    assert explained_variance(half) == pytest.approx(0.75)
    assert explained_variance(value_sums(perfect, constant, mask)) == 0
    assert explained_variance(torch.zeros(5)) == 0


def test_explained_variance_of_added_sums_is_that_of_the_whole():
    values, returns = torch.tensor([[0.5, 1.0, 4.0]]), torch.tensor([[1.0, 2.0, 6.0]])
    mask = torch.ones(1, 3)
    parts = [value_sums(values[:, i:], returns[:, i:], mask[:, i:]) for i in (2,)]
    parts.append(value_sums(values[:, :2], returns[:, :2], mask[:, :2]))
    # errors 0.5, 1, 2: variance 7/18; returns 1, 2, 6: variance 14/3
    assert explained_variance(parts[0] + parts[1]) == pytest.approx(1 - (7 / 18) / (14 / 3))


def test_nll_is_zero_on_the_prompt():
    loss = nll(torch.tensor([[-3.0, -1.5, -0.5]]), torch.tensor([[0, 1, 1]]))
    assert loss.tolist() == [[0, 1.5, 0.5]]


def test_pair_loss_is_bradley_terry_and_survives_wide_margins():
    """-log sigmoid(1) = 0.313262 and of -1, 1.313262."""
    loss = pair_loss(torch.tensor([1.0, 0.0, 500.0]), torch.tensor([0.0, 1.0, -500.0]))
    assert loss.tolist() == pytest.approx([0.313262, 1.313262, 0], abs=1e-6)
    wrong = pair_loss(torch.tensor([-500.0]), torch.tensor([500.0]))
    assert wrong.item() == 1000


def test_smoothed_labels_put_the_optimum_at_the_log_odds_of_a_true_label():
    margin = torch.tensor([math.log(0.9 / 0.1)], requires_grad=True)
    loss = pair_loss(margin, torch.zeros(1), 0.1)
    loss.sum().backward()
    assert margin.grad is not None
    assert margin.grad.item() == pytest.approx(0, abs=1e-7)
    assert loss.item() == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))


def test_pair_metrics_count_right_orders_and_average_margins():
    sums = pair_sums(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 1.0]))
    sums = sums + pair_sums(torch.tensor([0.0]), torch.tensor([3.0]))
    metrics = pair_metrics(sums)
    assert metrics == pytest.approx({"accuracy": 1 / 3, "margin": -2 / 3})
