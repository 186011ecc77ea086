"""Curation, selection, ranking and implicit rewards: which labels to buy, keep and derive."""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from rl.feedback.curation import curate
from rl.feedback.implicit import implicit_reward, preference_probability
from rl.feedback.ranking import borda, cancel_order, mean_win_probability, parse_verdict, ranks
from rl.feedback.selection import (
    certainty,
    hybrid,
    largest,
    predictive_entropy,
    preference_entropy,
    worthwhile,
)


def t(*values):
    return torch.tensor(values)


# --- curation


def test_only_pairs_beyond_the_margin_stay():
    chosen, rejected = t(1.0, 0.5, 0.0, -1.0), t(0.0, 0.0, 0.0, 1.0)
    assert curate(chosen, rejected).is_kept.tolist() == [True, True, False, False]
    kept = curate(chosen, rejected, margin=0.5)
    assert kept.is_kept.tolist() == [True, False, False, False]
    assert (kept.num_kept, kept.kept_fraction) == (1, 0.25)


@pytest.mark.parametrize("seed", range(5))
def test_planted_flips_go_far_more_often_than_pairs_do_at_random(seed):
    torch.manual_seed(seed)
    taste, features = torch.randn(6), torch.randn(400, 6)  # chosen less rejected, by taste
    features *= (features @ taste).sign()[:, None]
    is_flipped = torch.rand(400) < 0.2
    features[is_flipped] *= -1
    proxy = torch.zeros(6, requires_grad=True)  # trained on the labels it is to judge
    optimizer = torch.optim.SGD([proxy], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        (-logsigmoid(features @ proxy)).mean().backward()
        optimizer.step()
    noisy = (features @ proxy).detach() + 0.3 * torch.randn(400)
    curation = curate(noisy, torch.zeros(400))
    at_random = 1 - curation.kept_fraction
    removed = float((~curation.is_kept)[is_flipped].float().mean())
    assert removed > 0.7 > 2 * at_random
    assert float(is_flipped[curation.is_kept].float().mean()) < 0.1
    assert curate(noisy, torch.zeros(400)).is_kept.equal(curation.is_kept)


@pytest.mark.parametrize(
    ("chosen", "rejected", "margin", "message"),
    [
        (torch.zeros(2), torch.zeros(3), 0.0, "one of each per pair"),
        (torch.zeros(0), torch.zeros(0), 0.0, "no pairs"),
        (torch.zeros(1), torch.zeros(1), -0.1, r"margin is -0\.1"),
        (t(1.0, math.nan), torch.zeros(2), 0.0, "pair 1 has no finite"),
        (t(1.0, 1.0), t(0.0, -math.inf), 0.0, "pair 1 has no finite"),
    ],
)
def test_scores_that_cannot_be_curated_are_refused(chosen, rejected, margin, message):
    with pytest.raises(ValueError, match=message):
        curate(chosen, rejected, margin)


# --- selection


def test_entropies_and_certainty_give_the_values_worked_out_by_hand():
    assert predictive_entropy(t(-1.0, -3.0, -5.0, -5.0).view(2, 2)).tolist() == [2, 5]
    expected = [0, 0, math.log(2), 0.25 * math.log(4) + 0.75 * math.log(4 / 3)]
    assert preference_entropy(t(0.0, 1.0, 0.5, 0.25)).tolist() == pytest.approx(expected)
    assert certainty(t(1.0, -2.0), t(3.0, -2.5)).tolist() == [2, 0.5]


def test_the_largest_come_first_and_the_first_of_equals_before_the_second():
    assert largest(t(1.0, 3.0, 1.0, 3.0, 2.0), 4).tolist() == [1, 3, 4, 0]
    assert largest(torch.zeros(500), 100).tolist() == list(range(100))
    assert largest(t(1.0), 0).tolist() == []


def test_hybrid_picks_the_most_certain_pairs_of_the_most_uncertain_prompts():
    entropies = t(9.0, 1.0, 8.0, 7.0)
    certainties = t(0.2, math.nan, 0.1, 0.5)  # outside the pool nothing was sampled
    assert hybrid(entropies, certainties, pool=3, count=2).tolist() == [3, 0]
    assert hybrid(entropies, certainties, pool=2, count=2).tolist() == [0, 2]


def test_candidates_that_cannot_be_ranked_are_refused():
    with pytest.raises(ValueError, match="count is 3: choose between 0 and all 2"):
        largest(t(1.0, 2.0), 3)
    with pytest.raises(ValueError, match="candidate 1 has no value"):
        largest(t(1.0, math.nan), 1)
    with pytest.raises(ValueError, match="count is 2: choose between 0 and all 1"):
        hybrid(t(1.0, 2.0), t(1.0, 2.0), pool=1, count=2)
    with pytest.raises(ValueError, match="2 entropies but 1"):
        hybrid(t(1.0, 2.0), t(1.0), pool=1, count=1)
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        preference_entropy(t(0.5, 1.1))
    with pytest.raises(ValueError, match=r"give \(prompts, replies\)"):
        predictive_entropy(t(-1.0))


def test_what_is_worth_a_label_by_each_criterion():
    # Log-ratios per prompt: 0, 4 (-3 to 1), 1, 3; entropies 1, 5, 3, 9.
    logprobs = torch.tensor([[-1.0, -1.0], [-7.0, -3.0], [-2.5, -3.5], [-9.0, -9.0]])
    ratios = torch.tensor([[0.0, 0.0], [-3.0, 1.0], [0.5, -0.5], [1.5, -1.5]])
    reference = logprobs - ratios
    assert worthwhile("random", logprobs, None, 2).tolist() == [0, 1]
    assert worthwhile("entropy", logprobs, None, 2).tolist() == [3, 1]
    assert worthwhile("certainty", logprobs, reference, 3).tolist() == [1, 3, 2]
    # Of the two of highest entropy the surer one, and all of them where as many are wanted.
    assert worthwhile("hybrid", logprobs, reference, 1).tolist() == [1]
    assert worthwhile("hybrid", logprobs, reference, 4).tolist() == [1, 3, 2, 0]


# --- ranking

CLEAR = torch.tensor([[0.9, 0.9, 0.8], [0.3, 0.1, 0.7], [0.4, 0.5, 0.6]])  # [i, j]: i beats j


def test_judging_both_orders_averages_them():
    expected = [[0.5, 0.8, 0.7], [0.2, 0.5, 0.6], [0.3, 0.4, 0.5]]
    torch.testing.assert_close(cancel_order(CLEAR), torch.tensor(expected))


def test_a_judge_s_love_of_what_it_reads_first_changes_nothing():
    biased = (CLEAR + 0.1).masked_fill(torch.eye(3).bool(), math.nan)
    torch.testing.assert_close(cancel_order(biased), cancel_order(CLEAR))
    for bias in torch.linspace(0, 1, 50):
        always_first = cancel_order(bias.expand(4, 4))
        assert borda(always_first).tolist() == [1.5] * 4
        assert ranks(mean_win_probability(always_first)).tolist() == [0] * 4


def test_mean_wins_and_borda_give_the_values_worked_out_by_hand():
    wins = cancel_order(CLEAR)
    assert mean_win_probability(wins).tolist() == pytest.approx([0.75, 0.4, 0.35])
    assert borda(wins).tolist() == [2, 1, 0]
    # 1 beats 0 and 2 narrowly, 0 beats 2 by far: the mean prefers 0, Borda 1.
    narrow = torch.tensor([[0.5, 0.49, 1.0], [0.51, 0.5, 0.51], [0.0, 0.49, 0.5]])
    assert ranks(mean_win_probability(narrow)).tolist() == [0, 1, 2]
    assert ranks(borda(narrow)).tolist() == [1, 0, 2]


def test_equal_scores_share_the_better_rank():
    assert ranks(t(0.5, 0.9, 0.5, 0.1)).tolist() == [1, 0, 1, 3]


@pytest.mark.parametrize("wrong", [torch.zeros(2, 3), torch.zeros(1, 1), torch.zeros(3)])
def test_comparisons_that_are_no_square_are_refused(wrong):
    for score in (cancel_order, mean_win_probability, borda):
        with pytest.raises(ValueError, match=r"give \(K, K\), K at least 2"):
            score(wrong)
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        cancel_order(t(0.0, math.nan, 0.5, 0.0).view(2, 2))


def test_a_verdict_is_read_from_the_last_match():
    assert parse_verdict("Good. [[A]]") == 1
    assert parse_verdict("[[A]] tempts, yet in the end: [[B]]") == 0
    assert parse_verdict("[[tie]]") == 0.5
    assert parse_verdict("A or b?\nWinner: b ", r"Winner:\s*(\w+)") == 0
    assert parse_verdict("Winner: TIE", r"Winner:\s*(\w+)") == 0.5


def test_an_unreadable_verdict_is_refused_in_one_line_and_never_a_tie():
    for text in ("both are\nfine", "", "[[C]]", "A"):
        with pytest.raises(ValueError, match="no verdict A, B or tie") as refused:
            parse_verdict(text)
        assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="no verdict"):
        parse_verdict("Winner: neither", r"Winner:\s*(\w+)")
    for pattern in ("A|B", "(A)|(B)"):
        with pytest.raises(ValueError, match="put the verdict in one"):
            parse_verdict("A", pattern)


# --- implicit rewards


def test_the_implicit_reward_is_the_scaled_log_ratio_per_reply_or_token():
    policy, reference = t(-12.0, -15.0), t(-13.0, -14.0)
    assert implicit_reward(policy, reference, 0.1).tolist() == pytest.approx([0.1, -0.1])
    per_token = implicit_reward(policy, reference, 0.1, torch.tensor([5, 10]))
    assert per_token.tolist() == pytest.approx([0.02, -0.01])


def test_spa_labels_by_the_margin_of_implicit_rewards():
    # Example A of the methods: -log of this is DPO's loss, 0.598138869.
    rewards = implicit_reward(t(-12.0, -15.0), t(-13.0, -14.0), 0.1)
    label = preference_probability(rewards[:1], rewards[1:])
    assert -math.log(label.item()) == pytest.approx(0.598138869, abs=1e-6)
    back = preference_probability(rewards[1:], rewards[:1])
    assert (label + back).item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("reference", "beta", "lengths", "message"),
    [
        (t(0.0, 0.0), 0.0, None, "beta is 0"),
        (t(0.0), 0.1, None, "for the same replies"),
        (t(0.0, 0.0), 0.1, torch.tensor([3, 0]), "1 or more"),
        (t(0.0, 0.0), 0.1, torch.tensor([3]), "1 or more"),
    ],
)
def test_implicit_rewards_of_mismatched_replies_are_refused(reference, beta, lengths, message):
    with pytest.raises(ValueError, match=message):
        implicit_reward(t(0.0, 0.0), reference, beta, lengths)
