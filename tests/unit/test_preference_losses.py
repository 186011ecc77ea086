"""Pair and list losses, exploration and several references: values of the methods' specification
(sections 2.6, 5.3 and 6) and the properties T2.1-T2.7."""

import math

import pytest
import torch

from rl.losses.listwise import lipo, lire, pro, rrhf
from rl.losses.preference import (
    at,
    cpo,
    dpo_positive,
    dpo_sft,
    dual_clip_dpo,
    hinge,
    nca,
    orpo,
    robust_dpo,
    selm,
    slic,
    spa,
    sppo,
    xpo,
)
from rl.losses.references import (
    clip_to_base,
    confidence_weights,
    mixed_reference,
    virtual_reference,
)
from rl.losses.replies import Replies
from rl.losses.rpo import rpo
from tests.unit.made_up_replies import (
    F64,
    assert_slope_is_numerical,
    example_a,
    gradient,
    random_replies,
    replies,
)

THIRD = torch.tensor([2])
"""`explored` of one row whose policy's own reply is column 2."""


def dpo(row, beta=0.1):
    return rpo(row, target="hard", beta=beta)


def close(loss, value):
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(value, abs=1e-8)


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (lambda a: robust_dpo(a, beta=0.1, epsilon=0.1), 0.573138869),
        (lambda a: nca(a, beta=0.1), 1.338793320),
        (lambda a: slic(a, delta=5.0, weight=0.1), 3.2),
        (lambda a: hinge(a, beta=0.1), 0.8),
        (lambda a: orpo(a, weight=0.1), 2.104205781),
        (lambda a: orpo(a, weight=1.0) - orpo(a, weight=0.0), 1.04205781),
        (lambda a: cpo(a, beta=0.1), 2.554355244),
        (lambda a: dpo_sft(a, beta=0.1, eta=0.005), 0.604138869),
        (lambda a: sppo(a, beta=0.1), 32.0),  # (1 - 5)^2 + (-1 + 5)^2
    ],
)
def test_the_survey_s_example_gives_its_values(loss, value):
    close(loss(example_a()), value)


def test_dpo_positive_gives_its_value_and_is_dpo_above_the_reference():
    close(dpo_positive(example_a(s_w=-14.0), beta=0.1, penalty=5.0), 0.974076984)
    close(dpo_positive(example_a(), beta=0.1, penalty=5.0), 0.598138869)


def test_regularized_po_without_its_weight_is_dpo_and_holds_the_chosen_reply_up():
    row = random_replies(5, 2)
    assert torch.equal(dpo_sft(row, beta=0.1, eta=0.0), dpo(row))
    held = gradient(dpo_sft(row, beta=0.1, eta=0.5), row) - gradient(dpo(row), row)
    torch.testing.assert_close(held, torch.tensor([[-0.05, 0.0]], dtype=F64).expand(5, 2))


def test_robust_dpo_is_in_the_mean_over_flipped_labels_dpo_on_the_true_ones():
    row = random_replies(5, 2)
    columns = [1, 0]
    flipped = replies(row.logprobs[:, columns], row.ref_logprobs[:, columns])
    mean = 0.8 * robust_dpo(row, epsilon=0.2) + 0.2 * robust_dpo(flipped, epsilon=0.2)
    torch.testing.assert_close(mean, dpo(row))


@pytest.mark.parametrize("epsilon", [0.5, -0.1])
def test_robust_dpo_refuses_labels_that_say_nothing(epsilon):
    with pytest.raises(ValueError, match="epsilon"):
        robust_dpo(example_a(), epsilon=epsilon)


def test_spa_smooths_the_noisy_rows_alone():
    row = replies([[-12.0, -15.0]] * 2, [[-13.0, -14.0]] * 2)
    loss = spa(row, torch.tensor([False, True]), beta=0.1, alpha=0.1)
    assert loss.tolist() == pytest.approx([0.598138869, 0.618138869], abs=1e-8)


def test_dual_clip_bounds_each_reward_on_its_own_side():
    row = replies([[3.0, 0.0], [0.0, -3.0], [-3.0, 3.0]])
    clipped = dual_clip_dpo(row, beta=1.0, clip_w=2.0, clip_l=1.0)
    expected = dpo(replies([[2.0, 0.0], [0.0, -1.0], [-3.0, 3.0]]), beta=1.0)
    torch.testing.assert_close(clipped, expected)
    slopes = gradient(clipped, row)
    assert slopes[0, 0] == 0
    assert slopes[1, 1] == 0
    assert (slopes[2] != 0).all()


def test_slic_imitates_the_column_it_is_told_to():
    row = replies([-12.0, -15.0, -7.0])
    close(slic(row, delta=5.0, weight=0.1, imitated=2), 2.7)


# --- exploration ---------------------------------------------------------------------------------


def explorers(h_y=0.5):
    return replies([-12.0, -15.0, -9.0], [-14.0, -14.0, -9.0 - h_y])


def test_selm_gives_its_reference_value():
    close(selm(explorers(), THIRD, alpha=0.001, beta=0.01), 0.678264676)
    close(dpo(explorers(), 0.01), 0.678259676)


@pytest.mark.parametrize("loss", [selm, xpo])
def test_t2_1_and_t2_7_without_alpha_they_are_dpo_bit_for_bit(loss):
    row = random_replies(9, 3)
    explored = torch.arange(9) % 3
    assert torch.equal(loss(row, explored, alpha=0.0, beta=0.1), dpo(row))


def test_t2_2_at_the_reference_the_loss_is_log_2_and_the_slope_of_y_is_alpha_beta():
    alpha, beta = 0.003, 0.02
    row = replies([-3.0, -4.0, -5.0], [-3.0, -4.0, -5.0])
    loss = selm(row, THIRD, alpha=alpha, beta=beta)
    close(loss, math.log(2))
    expected = [-beta / 2, beta / 2, alpha * beta]
    assert gradient(loss, row)[0].tolist() == pytest.approx(expected, rel=1e-12)
    chosen_itself = selm(row, torch.tensor([0]), alpha=alpha, beta=beta)
    expected = [-beta / 2 + alpha * beta, beta / 2, 0.0]
    assert gradient(chosen_itself, row)[0].tolist() == pytest.approx(expected, rel=1e-12)


def test_t2_3_the_code_s_form_has_the_gradient_of_the_paper_s():
    row, explored, alpha, beta = random_replies(6, 3), torch.arange(6) % 3, 0.01, 0.1
    code = selm(row, explored, alpha=alpha, beta=beta)
    paper = dpo(row, beta) + alpha * beta * at(row.logprobs, explored)
    torch.testing.assert_close(gradient(code, row), gradient(paper, row))
    torch.testing.assert_close(paper - code, alpha * beta * at(row.ref_logprobs, explored))


def kl_after_a_step(policy_logits, reference, alpha, y_weights):
    """KL(reference || policy) after a step on SELM without preferences, y drawn by `y_weights`."""
    logits = policy_logits.clone().requires_grad_()
    # Both replies of a pair are the same one; the third is each possible y in turn.
    columns = torch.stack([torch.zeros(4).long(), torch.zeros(4).long(), torch.arange(4)], -1)
    zeros = torch.zeros(4, 3, dtype=F64)
    rows = Replies(
        logprobs=torch.log_softmax(logits, -1)[columns],
        ref_logprobs=reference[columns],
        lengths=zeros + 1,
        scores=zeros,
        is_demo=zeros.bool(),
    )
    loss = y_weights @ selm(rows, torch.full((4,), 2), alpha=alpha, beta=0.1)
    (slope,) = torch.autograd.grad(loss, logits)
    moved = torch.log_softmax(logits.detach() - slope, -1)
    return (reference.exp() * (reference - moved)).sum().item()


def test_t2_4_without_preferences_alpha_alone_leaves_the_reference():
    """On one sampled y; in exact expectation over y the reference is a (repelling) fixed point."""
    reference = torch.log_softmax(torch.tensor([1.0, 0.3, -0.5, -1.0], dtype=F64), -1)
    for y in torch.eye(4, dtype=F64):
        assert kl_after_a_step(reference, reference, 0.5, y) > 1e-6
        assert kl_after_a_step(reference, reference, 0.0, y) == pytest.approx(0, abs=1e-15)
    expected = reference.exp()
    assert kl_after_a_step(reference, reference, 0.5, expected) == pytest.approx(0, abs=1e-15)
    nearby = reference + torch.tensor([0.1, 0.0, 0.0, -0.1], dtype=F64)
    start = kl_after_a_step(nearby, reference, 0.0, expected)
    assert kl_after_a_step(nearby, reference, 0.5, expected) > start * 1.01


def test_t2_6_a_cap_drops_the_term_where_it_ran_away_and_is_off_by_default():
    row = replies([[0.0, 0.0, -60.0], [0.0, 0.0, -40.0]])
    explored = torch.tensor([2, 2])
    free = selm(row, explored, alpha=0.1, beta=0.1)
    capped = selm(row, explored, alpha=0.1, beta=0.1, cap=50.0)
    log_2 = math.log(2)
    assert free.tolist() == pytest.approx([log_2 - 0.6, log_2 - 0.4])
    assert capped.tolist() == pytest.approx([log_2, log_2 - 0.4])
    assert gradient(capped, row)[:, 2].tolist() == pytest.approx([0.0, 0.01])


def test_t2_7_xpo_pushes_the_reference_s_sample_down_by_alpha_alone():
    row, explored = random_replies(4, 3), torch.full((4,), 2)
    extra = [
        gradient(xpo(row, explored, alpha=alpha, beta=0.1), row) - gradient(dpo(row), row)
        for alpha in (0.01, 0.02)
    ]
    for alpha, slope in zip((0.01, 0.02), extra, strict=True):
        expected = torch.tensor([[0.0, 0.0, alpha]], dtype=F64).expand(4, 3)
        torch.testing.assert_close(slope, expected, atol=1e-12, rtol=0)


# --- lists ---------------------------------------------------------------------------------------


def ranked():
    """p = (-2, -1.5, -3), scores (2, 1, 0)."""
    return replies([-4.0, -4.5, -9.0], lengths=[2, 3, 3], scores=[2, 1, 0])


def test_rrhf_adds_the_inversions_and_imitates_the_best():
    close(rrhf(ranked(), sft=0.0), 0.5)
    close(rrhf(ranked()), 4.5)


def test_pro_gives_its_reference_value():
    close(pro(ranked(), sft=0.0), 2.790516960)
    close(pro(ranked(), sft=0.5), 3.790516960)


def test_lipo_gives_its_reference_value():
    row = replies([1.0, -1.0, 0.5], scores=[1.0, 0.5, 0.0])
    close(lipo(row, beta=0.1), 0.668992992)


def test_lire_is_the_expected_score():
    p, r = torch.tensor([-2.0, -1.5, -3.0]).double(), torch.tensor([2.0, 1, 0]).double()
    weights = torch.exp(p / 0.5) / torch.exp(p / 0.5).sum()
    close(lire(ranked(), temperature=0.5), -(weights * r).sum().item())


LISTS = [rrhf, pro, lipo]


@pytest.mark.parametrize("loss", LISTS)
def test_replies_of_equal_score_are_in_no_order(loss):
    row = replies([-3.0, -5.0, -4.0], scores=[1.0, 1.0, 1.0])
    rank = loss(row) if loss is lipo else loss(row, sft=0.0)
    close(rank, 0.0)
    assert not gradient(rank, row).any()


@pytest.mark.parametrize("loss", LISTS)
def test_a_list_s_loss_does_not_depend_on_the_order_of_its_columns(loss):
    row, order = random_replies(5, 4), [2, 0, 3, 1]
    tied = replies(row.logprobs, row.ref_logprobs, row.lengths, row.scores.round())
    fields = (tied.logprobs, tied.ref_logprobs, tied.lengths, tied.scores)
    torch.testing.assert_close(loss(replies(*(f[:, order] for f in fields))), loss(tied))


def test_two_of_three_that_tie_are_compared_with_the_third_alone():
    row = replies([-1.0, -3.0, -2.0], scores=[0.0, 0.0, 1.0])
    close(rrhf(row, sft=0.0), 1.0)
    third = math.log(math.exp(-2) + math.exp(-1) + math.exp(-3)) + 2
    close(pro(row, sft=0.0), third)


def test_best_replies_that_tie_share_the_imitation():
    row = replies([-1.0, -3.0, -8.0], scores=[1.0, 1.0, 0.0])
    for loss in (rrhf, pro):
        close(loss(row, sft=1.0) - loss(row, sft=0.0), 2.0)


def test_lipo_learns_while_the_policy_is_the_reference():
    row = replies([-3.0, -3.0], [-3.0, -3.0], scores=[1.0, 0.0])
    slope = gradient(lipo(row), row)[0]
    assert slope[0] < 0 < slope[1]


# --- all -----------------------------------------------------------------------------------------

EVERY = [
    robust_dpo,
    dpo_positive,
    dpo_sft,
    dual_clip_dpo,
    nca,
    slic,
    hinge,
    orpo,
    cpo,
    sppo,
    rrhf,
    pro,
    lipo,
    lire,
    lambda row: spa(row, torch.ones(len(row.logprobs))),
    lambda row: selm(row, torch.zeros(len(row.logprobs)).long()),
    lambda row: xpo(row, torch.zeros(len(row.logprobs)).long()),
]


@pytest.mark.parametrize("loss", EVERY)
def test_gradients_are_those_of_central_differences(loss):
    assert_slope_is_numerical(loss, random_replies(3, 2, seed=4))


@pytest.mark.parametrize("loss", EVERY)
@pytest.mark.parametrize("logprobs", [[0.0, -1e4], [-1e4, 0.0], [-1e4, -1e4]])
def test_log_probs_of_minus_10000_and_0_stay_finite_in_float32(loss, logprobs):
    zeros = torch.zeros(1, 2)
    row = Replies(
        logprobs=torch.tensor([logprobs]).requires_grad_(),
        ref_logprobs=zeros,
        lengths=zeros + 1,
        scores=torch.tensor([[1.0, 0.0]]),
        is_demo=zeros.bool(),
    )
    value = loss(row)
    assert value.isfinite().all()
    assert gradient(value, row).isfinite().all()


# --- references ----------------------------------------------------------------------------------


def two_references():
    """Extra and base log-probs (1, 2) of a pair."""
    return torch.tensor([[-13.0, -14.0]], dtype=F64), torch.tensor([[-12.0, -16.0]], dtype=F64)


def test_mrpo_s_virtual_reference_has_its_value_and_lies_between_the_references():
    both = torch.stack(two_references())
    middle = virtual_reference(both, torch.tensor([0.5, 0.5], dtype=F64))
    assert middle[0, 0].item() == pytest.approx(-12.620114507, abs=1e-8)
    assert (both.amin(0) <= middle).all()
    assert (middle <= both.amax(0)).all()


def test_mrpo_s_weights_belong_to_their_own_reference():
    extra, base = two_references()
    both = torch.stack([extra, base])
    weights = torch.tensor([0.9, 0.1], dtype=F64)
    formula = -torch.log(0.9 / extra.exp() + 0.1 / base.exp())
    torch.testing.assert_close(virtual_reference(both, weights), formula)
    released = extra + base - torch.logaddexp(math.log(0.9) + extra, math.log(0.1) + base)
    torch.testing.assert_close(virtual_reference(both, weights.flip(0)), released)


def test_equal_references_are_that_reference():
    one = torch.tensor([[-900.0, -14.0]], dtype=F64)
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=F64)
    torch.testing.assert_close(virtual_reference(one.expand(3, 1, 2), weights), one)


def test_weights_may_differ_from_pair_to_pair():
    references = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0)) - 9
    share = torch.tensor([0.0, 0.3, 0.6, 1.0])[:, None]
    rows = virtual_reference(references, torch.stack([share, 1 - share]))
    torch.testing.assert_close(rows[0], references[1, 0])
    torch.testing.assert_close(rows[3], references[0, 3])
    one = virtual_reference(references[:, 1:2], torch.tensor([0.3, 0.7]))
    torch.testing.assert_close(rows[1:2], one)


def test_ctro_holds_the_extra_reference_near_the_base_wider_for_the_longer_side():
    base = torch.tensor([[-10.0, -30.0]], dtype=F64)
    extra = torch.tensor([[-30.0, -10.0]], dtype=F64)  # both sides' magnitudes are 40: half each
    expected = torch.tensor([[-10.5, -28.5]], dtype=F64)
    torch.testing.assert_close(clip_to_base(extra, base, epsilon=0.1), expected)
    uneven = torch.tensor([[-50.0, -90.0]], dtype=F64)  # 60 and 120: a third and two thirds
    expected = torch.tensor([[-10 * (1 + 0.1 / 3), -30 * (1 + 0.2 / 3)]], dtype=F64)
    torch.testing.assert_close(clip_to_base(uneven, base, epsilon=0.1), expected)
    near = base * 1.001
    torch.testing.assert_close(clip_to_base(near, base, epsilon=0.1), near)


def test_arwc_trusts_the_reference_that_tells_the_replies_apart():
    extra, base = two_references()  # gaps of 1 and 4
    assert confidence_weights(extra, base).tolist() == [[pytest.approx(0.2)]]
    assert confidence_weights(base[:, :1].expand(1, 2), base[:, :1].expand(1, 2)).item() == 0.5


def test_references_that_agree_mix_to_themselves():
    base = torch.tensor([[-13.0, -14.0], [-5.0, -9.0]])
    for is_by_confidence in (False, True):
        mixed = mixed_reference(base[None], base, is_by_confidence=is_by_confidence, clip=0.1)
        torch.testing.assert_close(mixed, base)


def test_mrpo_mixes_the_clipped_extra_reference_by_confidence():
    base, extra = torch.tensor([[-13.0, -14.0]]), torch.tensor([[-12.0, -20.0]])
    mixed = mixed_reference(extra[None], base, is_by_confidence=True, clip=0.1)
    clipped = clip_to_base(extra, base, epsilon=0.1)
    share = confidence_weights(clipped, base)
    by_hand = -torch.log(share / clipped.exp() + (1 - share) / base.exp())
    torch.testing.assert_close(mixed, by_hand)
    assert not torch.allclose(clipped, extra)
    assert (mixed - base).abs().max() > 0.01


def test_several_references_weigh_alike():
    base = torch.tensor([[-2.0, -3.0, -4.0]])
    extra = torch.stack([base - 1, base - 2])
    mixed = mixed_reference(extra, base, is_by_confidence=False, clip=None)
    by_hand = -torch.log((1 / base.exp() + 1 / extra[0].exp() + 1 / extra[1].exp()) / 3)
    torch.testing.assert_close(mixed, by_hand)
