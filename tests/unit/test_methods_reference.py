"""Properties that every implementation of PPO, RLOO and their relatives must have, on policies
small enough to enumerate. Monte-Carlo checks use fixed seeds and three standard errors."""

import itertools
from typing import get_args

import pytest
import torch

from rl.advantages import (
    batch_normalised,
    gae,
    greedy_baseline,
    group_centred,
    group_normalised,
    rloo,
    spread_over_tokens,
    top1,
)
from rl.correction import CorrectionMode, correction_weights
from rl.kl import k1, k2, k3
from rl.losses.policy import Ratio, policy_metrics, policy_objective
from rl.losses.value import value_loss
from rl.masking import Aggregation, aggregate, moment_sums, whiten
from rl.rewards import read_scores, shaped_scores

F64 = torch.float64
V = 3
"""Vocabulary of the tabular policy: two tokens, the second one's logits chosen by the first."""
GROUP = 4
CLIP = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}
REINFORCE = {"ratio": "none", "clip_low": None, "clip_high": None, "dual_clip": None}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def tabular_policy(seed):
    """Logits (V + 1, V): row 0 for the first token, row 1 + a for the second after a."""
    return torch.randn(V + 1, V, generator=generator(seed), dtype=F64)


def token_logprobs(logits, sequences):
    """(N, 2): log-prob of each token of `sequences` (N, 2)."""
    table = torch.log_softmax(logits, -1)
    first, second = sequences.unbind(-1)
    return torch.stack([table[0, first], table[1 + first, second]], -1)


def sample(logits, count, seed):
    """(count, 2) sequences drawn from the policy."""
    table, g = torch.softmax(logits, -1), generator(seed)
    first = torch.multinomial(table[0], count, replacement=True, generator=g)
    second = torch.multinomial(table[1 + first], 1, generator=g).squeeze(-1)
    return torch.stack([first, second], -1)


ALL = torch.tensor(list(itertools.product(range(V), repeat=2)))
"""(9, 2): every sequence of the tabular policy."""


def rewards_of(sequences, offset=0.0):
    """A fixed reward per sequence, not linear in its tokens."""
    first, second = sequences.unbind(-1)
    return torch.cos(first * 3.0 + second).to(F64) + first * second / 4 + offset


def exact_gradient(function, logits):
    """d/d logits of sum over all sequences of p(y) * function(y), for a constant function."""
    logits = logits.clone().requires_grad_()
    p = token_logprobs(logits, ALL).sum(-1).exp()
    (gradient,) = torch.autograd.grad((p * function).sum(), logits)
    return gradient


def assert_mean(estimates, exact):
    """The mean of independent `estimates` (N, ...) is `exact` to three standard errors."""
    error = estimates.std(0) / len(estimates) ** 0.5
    distance = (estimates.mean(0) - exact).abs()
    assert (distance <= 3 * error + 1e-12).all(), (distance / error).max()


def batch_gradients(loss_of, logits, batches):
    """(N, V + 1, V): gradient of each batch's own loss."""
    gradients = []
    for batch in batches:
        leaf = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(leaf, batch), leaf)
        gradients.append(gradient)
    return torch.stack(gradients)


def random_episode():
    rewards, values = torch.randn(2, 3, 6, generator=generator(0), dtype=F64)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0]])
    return rewards, values, mask


def test_t3_1_with_lambda_1_advantage_plus_value_is_the_suffix_sum_of_rewards():
    rewards, values, mask = random_episode()
    _, returns = gae(rewards, values, mask, 1.0, 1.0)
    suffix = (rewards * mask).flip(-1).cumsum(-1).flip(-1) * mask
    torch.testing.assert_close(returns, suffix)


def test_t3_1_with_lambda_0_the_advantage_is_the_one_step_error():
    rewards, values, mask = random_episode()
    advantages, _ = gae(rewards, values, mask, 0.9, 0.0)
    following = torch.cat([(values * mask)[:, 1:], torch.zeros(3, 1)], -1)
    torch.testing.assert_close(advantages, (rewards + 0.9 * following - values) * mask)


def test_t3_1_padding_content_never_reaches_a_valid_token():
    rewards, values, mask = random_episode()
    expected = gae(rewards, values, mask, 0.99, 0.95)
    spoiled = rewards.masked_fill(mask == 0, torch.nan), values.masked_fill(mask == 0, 1e9)
    for ours, theirs in zip(gae(*spoiled, mask, 0.99, 0.95), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_t3_2_a_gap_gives_the_advantages_of_the_reply_without_its_columns():
    rewards, values, _ = random_episode()
    mask = torch.tensor([[1, 1, 0, 0, 1, 1]]).expand(3, -1)
    advantages, returns = gae(rewards, values, mask, 0.9, 0.8)
    kept = [0, 1, 4, 5]
    expected = gae(rewards[:, kept], values[:, kept], torch.ones(3, 4), 0.9, 0.8)
    torch.testing.assert_close(advantages[:, kept], expected[0])
    torch.testing.assert_close(returns[:, kept], expected[1])
    assert not advantages[:, 2:4].any()


def step_batch(padding=0):
    """log-probs, old, advantages, values, old values, returns, entropy, mask of a made-up step."""
    g = generator(5)
    parts = [torch.randn(4, 5, generator=g, dtype=F64) * 0.3 for _ in range(7)]
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [1, 1, 0, 0, 0], [0, 1, 0, 0, 0]])
    if padding:
        parts = [torch.cat([part, torch.full((4, padding), 7.7, dtype=F64)], -1) for part in parts]
        mask = torch.cat([mask, torch.zeros(4, padding, dtype=mask.dtype)], -1)
    return [*parts, mask]


UNMOVED = {"clip_fraction": 0, "ratio/mean": 1, "approx_kl": 0}


def first_loss(logprobs, advantages, mask, ratio, mode):
    """Loss and metrics while the policy is still the old one."""
    loss, sums = policy_objective(logprobs, logprobs, advantages, mask, ratio=ratio, **CLIP)
    counts = {"num_tokens": mask.sum(), "num_sequences": len(mask)}
    return aggregate(loss, mask, mode, **counts).item(), policy_metrics(sums)


def test_t3_3_before_the_first_update_the_loss_is_minus_the_mean_advantage():
    logprobs, _, advantages, *_, mask = step_batch()
    loss, metrics = first_loss(logprobs, advantages, mask, "token", "token_mean")
    assert loss == pytest.approx(-advantages[mask.bool()].mean().item())
    assert metrics == UNMOVED
    white, _ = first_loss(logprobs, whiten(advantages, mask), mask, "token", "token_mean")
    assert white == pytest.approx(0, abs=1e-12)
    per_reply = advantages[:, :1].expand_as(mask)
    loss, metrics = first_loss(logprobs, per_reply, mask, "sequence", "sequence_sum")
    assert loss == pytest.approx(-advantages[:, 0].mean().item())
    assert metrics == UNMOVED
    loss, metrics = first_loss(logprobs, per_reply, mask, "geometric", "sequence_mean")
    assert loss == pytest.approx(-advantages[:, 0].mean().item())
    assert metrics == UNMOVED


def step_loss(batch, ratio, mode, counts, sums):
    """The whole loss of PPO: policy, critic and entropy, with whitened advantages."""
    logprobs, old, advantages, values, old_values, returns, entropy, mask = batch
    advantages, settings = whiten(advantages, mask, sums), {**CLIP, "dual_clip": 3.0}
    policy, _ = policy_objective(logprobs, old, advantages, mask, ratio=ratio, **settings)
    critic = value_loss(values, old_values, returns, 0.2)
    return aggregate(policy + 0.1 * critic - 0.01 * entropy, mask, mode, **counts, longest=9)


@pytest.mark.parametrize("ratio", get_args(Ratio))
@pytest.mark.parametrize("mode", get_args(Aggregation))
@pytest.mark.parametrize(("splits", "padding"), [([2, 2], 0), ([1, 3], 0), ([1] * 4, 3)])
def test_t3_4_loss_and_gradient_do_not_depend_on_the_split_or_the_padding(
    ratio, mode, splits, padding
):
    def run(batch, splits):
        leaves = [batch[i].requires_grad_() for i in (0, 3, 6)]
        parts = list(zip(*(tensor.split(splits) for tensor in batch), strict=True))
        sums = torch.stack([moment_sums(part[2], part[-1]) for part in parts]).sum(0)
        counts = {"num_tokens": batch[-1].sum(), "num_sequences": 4}
        loss = torch.stack([step_loss(part, ratio, mode, counts, sums) for part in parts]).sum()
        return loss, torch.autograd.grad(loss, leaves)

    expected_loss, expected = run(step_batch(), [4])
    loss, gradients = run(step_batch(padding), splits)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours[:, :5], theirs, rtol=1e-9, atol=1e-9)
        assert theirs.any()
        assert not ours[:, 5:].any()


@pytest.mark.parametrize("mode", get_args(CorrectionMode))
def test_t3_5_without_drift_every_correction_is_plain_ppo(mode):
    logprobs, old, advantages, *_, mask = step_batch()
    weights, keep = correction_weights(old, old, mask, mode=mode, low=0.5, high=2.0, veto=1e-4)
    assert keep.all()
    assert torch.equal(weights, mask.to(F64))
    plain, corrected = (
        policy_objective(logprobs, old, advantages, mask, ratio="token", **CLIP, weights=w)[0]
        for w in (None, weights)
    )
    assert torch.equal(plain, corrected)


def test_t3_6_the_product_of_weights_turns_the_samplers_mean_into_the_learners():
    old, roll = tabular_policy(1), tabular_policy(2)
    sequences = sample(roll, 40_000, seed=3)
    weights, _ = correction_weights(
        token_logprobs(old, sequences),
        token_logprobs(roll, sequences),
        torch.ones_like(sequences),
        mode="sequence_tis",
        low=0.0,
        high=torch.inf,
        veto=None,
    )
    exact = (token_logprobs(old, ALL).sum(-1).exp() * rewards_of(ALL)).sum()
    assert_mean(weights[:, 0] * rewards_of(sequences), exact)
    uncorrected = rewards_of(sequences)
    with pytest.raises(AssertionError):
        assert_mean(uncorrected, exact)


@pytest.mark.parametrize("mode", get_args(CorrectionMode))
def test_t3_6_no_gradient_flows_through_a_weight(mode):
    logprobs, old, advantages, *_, mask = step_batch()
    logprobs.requires_grad_()
    weights, _ = correction_weights(logprobs, old, mask, mode=mode, low=0.0, high=2.0, veto=None)
    assert not weights.requires_grad
    loss, _ = policy_objective(logprobs, old, advantages, mask, **REINFORCE, weights=weights)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    torch.testing.assert_close(gradient, -weights * advantages * mask)


# --- T3.7: KL ----------------------------------------------------------------------------------

POLICY, REFERENCE = tabular_policy(11) * 0.5, tabular_policy(12) * 0.5


def kl_setup():
    """Exact KL, its gradient, and 200 batches of 200 sequences from the policy."""
    logits = POLICY.clone().requires_grad_()
    log_ratio = (token_logprobs(logits, ALL) - token_logprobs(REFERENCE, ALL)).sum(-1)
    kl = (token_logprobs(logits, ALL).sum(-1).exp() * log_ratio).sum()
    (gradient,) = torch.autograd.grad(kl, logits)
    return kl.detach(), gradient, sample(POLICY, 40_000, seed=13).view(200, 200, 2)


def kl_loss_of(estimator):
    """Loss of a batch with the estimator applied to whole sequences, one action each."""

    def loss(logits, batch):
        logprobs = token_logprobs(logits, batch).sum(-1)
        return estimator(logprobs, token_logprobs(REFERENCE, batch).sum(-1)).mean()

    return loss


def test_t3_7_the_gradient_of_k2_is_the_gradient_of_the_kl():
    _, exact, batches = kl_setup()
    assert_mean(batch_gradients(kl_loss_of(k2), POLICY, batches), exact)


def test_t3_7_the_gradient_of_k1_is_zero_and_that_of_k3_is_biased():
    _, exact, batches = kl_setup()
    assert_mean(batch_gradients(kl_loss_of(k1), POLICY, batches), torch.zeros_like(exact))
    with pytest.raises(AssertionError):
        assert_mean(batch_gradients(kl_loss_of(k3), POLICY, batches), exact)


@pytest.mark.parametrize("estimator", [k1, k3])
def test_t3_7_k1_and_k3_are_the_kl_in_expectation(estimator):
    exact, _, batches = kl_setup()
    sequences = batches.flatten(0, 1)
    logprobs, ref = (token_logprobs(p, sequences).sum(-1) for p in (POLICY, REFERENCE))
    assert_mean(estimator(logprobs, ref), exact)


def test_t3_8_neither_a_longer_tail_nor_its_content_moves_a_score():
    outputs = torch.tensor([[0.1, 0.2, 0.3, 0.9], [0.5, 0.6, 0.7, 0.8]])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    expected = [outputs[0, 1].item(), outputs[1, 2].item()]
    assert read_scores(outputs, mask).tolist() == expected
    spoiled = outputs.masked_fill(mask == 0, torch.nan)
    assert read_scores(spoiled, mask).tolist() == expected
    longer = torch.cat([spoiled, torch.full((2, 5), -3.0)], -1)
    longer_mask = torch.cat([mask, torch.zeros(2, 5, dtype=mask.dtype)], -1)
    assert read_scores(longer, longer_mask).tolist() == expected


def group_gradients(advantage_of, offset):
    """(500, V + 1, V): gradients from 500 batches of 20 groups, through our own objective."""
    groups = sample(POLICY, 500 * 20 * GROUP, seed=21).view(500, 20 * GROUP, 2)

    def objective(logits, batch):
        advantages = advantage_of(rewards_of(batch, offset).view(-1, GROUP)).flatten()
        logprobs, mask = token_logprobs(logits, batch), torch.ones_like(batch)
        advantages = spread_over_tokens(advantages, mask)
        loss, _ = policy_objective(logprobs, logprobs.detach(), advantages, mask, **REINFORCE)
        return -aggregate(
            loss, mask, "sequence_sum", num_tokens=mask.sum(), num_sequences=len(batch)
        )

    return batch_gradients(objective, POLICY, groups)


def test_t4_1_rloo_is_unbiased_and_varies_less_than_reinforce():
    exact = exact_gradient(rewards_of(ALL), POLICY)
    ours = group_gradients(rloo, offset=2.0)
    plain = group_gradients(lambda scores: scores, offset=2.0)
    assert_mean(ours, exact)
    assert_mean(plain, exact)
    assert ours.var(0).sum() < 0.3 * plain.var(0).sum()


def test_t4_1_remax_is_unbiased_and_varies_less_than_reinforce():
    best = ALL[token_logprobs(POLICY, ALL).sum(-1).argmax()]
    greedy = rewards_of(best, offset=2.0)

    def remax(scores):
        with_greedy = torch.cat([scores, greedy.expand(len(scores), 1)], -1)
        return greedy_baseline(with_greedy)[:, :-1]

    ours = group_gradients(remax, offset=2.0)
    plain = group_gradients(lambda scores: scores, offset=2.0)
    assert_mean(ours, exact_gradient(rewards_of(ALL), POLICY))
    assert ours.var(0).sum() < 0.5 * plain.var(0).sum()


def test_t4_1_mean_centring_alone_shrinks_the_gradient_by_a_group():
    exact = exact_gradient(rewards_of(ALL), POLICY)
    assert_mean(group_gradients(group_centred, offset=2.0), exact * (GROUP - 1) / GROUP)


def test_t4_1_a_kl_inside_the_score_gives_the_gradient_of_the_regularised_reward():
    """Exact: reward minus beta times the log-ratio as a constant, whose own slope has mean 0."""
    beta = 0.3
    sequences = sample(POLICY, 500 * 20 * GROUP, seed=22).view(500, 20 * GROUP, 2)

    def shaped(batch):
        mask = torch.ones_like(batch)
        kl = k1(token_logprobs(POLICY, batch), token_logprobs(REFERENCE, batch))
        return shaped_scores(rewards_of(batch), kl, mask, beta)

    def objective(logits, batch):
        advantages = rloo(shaped(batch).view(-1, GROUP)).flatten()
        return (advantages * token_logprobs(logits, batch).sum(-1)).mean()

    assert_mean(batch_gradients(objective, POLICY, sequences), exact_gradient(shaped(ALL), POLICY))


def by_the_batch(scores):
    """Lite PPO's advantages, the batch being these groups alone."""
    return batch_normalised(scores, moment_sums(scores))


ESTIMATORS = [rloo, group_centred, group_normalised, by_the_batch]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_t4_2_adding_a_constant_changes_no_advantage(estimator):
    scores = torch.randn(5, GROUP, generator=generator(7), dtype=F64)
    torch.testing.assert_close(estimator(scores + 100), estimator(scores))


def test_t4_2_scaling_scales_rloo_and_leaves_grpo():
    scores = torch.randn(5, GROUP, generator=generator(7), dtype=F64)
    torch.testing.assert_close(rloo(3 * scores), 3 * rloo(scores))
    torch.testing.assert_close(
        group_normalised(3 * scores, eps=0.0), group_normalised(scores, eps=0.0)
    )
    torch.testing.assert_close(group_centred(3 * scores), 3 * group_centred(scores))
    torch.testing.assert_close(by_the_batch(3e3 * scores), by_the_batch(1e3 * scores))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_t4_3_advantages_of_a_group_sum_to_zero(estimator):
    scores = torch.randn(5, GROUP, generator=generator(8), dtype=F64)
    torch.testing.assert_close(estimator(scores).sum(-1), torch.zeros(5, dtype=F64))


@pytest.mark.parametrize("estimator", [*ESTIMATORS, top1])
def test_t4_4_a_group_of_one_is_refused_by_field_name(estimator):
    with pytest.raises(ValueError, match=r"data\.samples_per_prompt is 1.*at least 2"):
        estimator(torch.ones(3, 1))


def test_t4_5_gspo_has_grpos_gradient_before_the_policy_moves():
    old = torch.tensor([[-1.0, -2.0, 0.0], [-0.5, -0.1, -3.0]], dtype=F64)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    advantages = torch.tensor([0.7, -1.1], dtype=F64)
    per_token = spread_over_tokens(advantages, mask)

    def gradient(ratio):
        logprobs = old.clone().requires_grad_()
        loss, _ = policy_objective(logprobs, old, per_token, mask, ratio=ratio, **CLIP)
        loss = aggregate(loss, mask, "sequence_mean", num_tokens=5, num_sequences=2)
        return torch.autograd.grad(loss, logprobs)[0]

    torch.testing.assert_close(gradient("geometric"), gradient("token"))
    by_hand = -per_token / mask.sum(-1, keepdim=True) / 2
    torch.testing.assert_close(gradient("geometric"), by_hand)


def test_t4_6_a_constant_divisor_is_linear_in_length_and_a_mean_of_means_is_not():
    """Dr. GRPO divides a reply's sum by the constant length limit, GRPO by its own length."""
    tokens = torch.tensor([[1.0, 2.0, 4.0]])
    doubled = torch.cat([tokens, tokens], -1)

    def loss(x, mode):
        counts = {"num_tokens": x.numel(), "num_sequences": 1, "longest": 10}
        return aggregate(x, torch.ones_like(x), mode, **counts).item()

    assert loss(tokens, "constant") == pytest.approx(0.7)
    assert loss(doubled, "constant") == pytest.approx(1.4)
    assert loss(tokens, "sequence_mean") == pytest.approx(7 / 3)
    assert loss(doubled, "sequence_mean") == pytest.approx(7 / 3)
