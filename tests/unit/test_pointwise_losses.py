"""Point-wise losses: the tests of ULMA in the methods' specification, and KTO's values."""

import math

import pytest
import torch

from rl.losses.pointwise import (
    class_weights,
    estimate_c,
    kto,
    mean_score,
    pairs_to_points,
    pointwise_dpo,
    ulma,
    unlikelihood,
)
from rl.losses.replies import Replies
from tests.unit.made_up_replies import (
    F64,
    assert_slope_is_numerical,
    gradient,
    random_replies,
    replies,
)

BETA = 0.3


def labelled(prompts=5, k=3):
    """Random replies with labels 0 and 1, demonstrations among the liked ones alone."""
    row = random_replies(prompts, k)
    labels = (row.scores > 0).to(F64)
    return replies(row.logprobs, row.ref_logprobs, row.lengths, labels, labels * row.is_demo)


def same(ours, expected):
    torch.testing.assert_close(ours, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("logp_reduction", ["sum", "token_mean"])
@pytest.mark.parametrize("c", [0.4, torch.tensor([[0.1], [-2.0], [0.7], [3.0], [0.0]]).double()])
def test_1_gradients_are_the_closed_forms(logp_reduction, c):
    row = labelled()
    per_token = 1 / row.lengths if logp_reduction == "token_mean" else torch.ones(5, 3).double()
    options = {"beta": BETA, "c": c, "logp_reduction": logp_reduction}
    r = (BETA * row.log_ratios * per_token + c).detach()
    z = row.scores
    binary = -BETA * (z - torch.sigmoid(r)) * per_token
    continuous = -2 * BETA * (z - r) * per_token
    same(gradient(pointwise_dpo(row, **options), row), binary)
    same(gradient(pointwise_dpo(row, **options, label_mode="continuous"), row), continuous)
    demo = row.is_demo
    assert demo.any()
    assert (~demo & (z == 0)).any()
    same(gradient(ulma(row, **options), row), torch.where(demo, -per_token, binary))
    loss = ulma(row, **options, label_mode="continuous")
    same(gradient(loss, row), torch.where(demo, -per_token, continuous))


def test_2_at_the_reference_every_label_costs_log_2():
    row = replies([-3.0, -7.0], [-3.0, -7.0], scores=[1.0, 0.0])
    same(pointwise_dpo(row), torch.full((1, 2), math.log(2), dtype=F64))
    assert ulma(row)[0, 1].item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("logp_reduction", ["sum", "token_mean"])
def test_3_demonstrations_alone_are_imitated_whatever_beta_reference_and_c(logp_reduction):
    row = labelled()
    every = torch.ones(5, 3)
    demos = replies(row.logprobs, row.ref_logprobs, row.lengths, every, every)
    moved = replies(row.logprobs, row.ref_logprobs * 3, row.lengths, every, every)
    nll = demos.logprobs if logp_reduction == "sum" else demos.mean_logprobs
    for of, beta, c in ((demos, 0.1, 0.0), (moved, 7.0, 2.5)):
        loss = ulma(of, beta=beta, c=c, logp_reduction=logp_reduction)
        assert torch.equal(loss, -nll)
        expected = -torch.ones_like(nll) / (1 if logp_reduction == "sum" else row.lengths)
        assert torch.equal(gradient(loss, of), expected)


@pytest.mark.parametrize("label_mode", ["binary", "continuous"])
def test_3_without_demonstrations_ulma_is_pointwise_dpo(label_mode):
    row = random_replies(5, 3)
    rows = replies(row.logprobs, row.ref_logprobs, row.lengths, torch.zeros(5, 3))
    options = {"beta": BETA, "c": 0.2, "label_mode": label_mode}
    assert torch.equal(ulma(rows, **options), pointwise_dpo(rows, **options))


def split_gradient(reduction, num_parts):
    """Gradient of ULMA over 16 replies given in `num_parts` micro-batches of 16 / num_parts."""
    whole = labelled(16, 1)
    parts = []
    for rows in torch.arange(16).chunk(num_parts):
        part = replies(*(getattr(whole, name)[rows] for name in FIELDS))
        weights = class_weights(
            part.is_demo,
            reduction,
            num_positive=whole.is_demo.sum(),
            num_negative=(~whole.is_demo).sum(),
        )
        share = 1 / num_parts if reduction == "reference_code" else 1
        parts.append(gradient(ulma(part) * weights * share, part))
    return torch.cat(parts)


FIELDS = ["logprobs", "ref_logprobs", "lengths", "scores", "is_demo"]


@pytest.mark.parametrize("reduction", ["global", "class_balanced"])
@pytest.mark.parametrize("num_parts", [2, 4, 16])
def test_4_splitting_a_batch_changes_no_gradient(reduction, num_parts):
    whole = split_gradient(reduction, 1)
    assert whole.abs().sum() > 0
    torch.testing.assert_close(split_gradient(reduction, num_parts), whole)


def test_4_the_reduction_of_the_reference_code_depends_on_the_split():
    whole = split_gradient("reference_code", 1)
    torch.testing.assert_close(whole, split_gradient("class_balanced", 1))
    assert (split_gradient("reference_code", 4) - whole).abs().max() > 1e-3


def test_4_global_weights_are_a_mean_and_balanced_ones_two_means():
    liked = torch.tensor([[True, False, False, False]])
    counts = {"num_positive": 1, "num_negative": 3}
    assert class_weights(liked, "global", **counts)[0].tolist() == [0.25] * 4
    third = pytest.approx(1 / 3)
    assert class_weights(liked, "class_balanced", **counts)[0].tolist() == [
        1.0,
        third,
        third,
        third,
    ]


def test_4_the_reference_code_counts_the_micro_batch_alone():
    liked = torch.tensor([[True, False, False]])
    weights = class_weights(liked, "reference_code", num_positive=10, num_negative=20)
    assert weights[0].tolist() == [1.0, 0.5, 0.5]


@pytest.mark.parametrize("reduction", ["global", "class_balanced", "reference_code"])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_5_an_empty_class_adds_nothing(reduction, label):
    labels = torch.full((1, 4), label)
    row = replies([-1.0, -2.0, -3.0, -4.0], scores=labels, is_demo=labels)
    counts = {"num_positive": int(4 * label), "num_negative": int(4 * (1 - label))}
    loss = (ulma(row) * class_weights(row.is_demo, reduction, **counts)).sum()
    assert loss.item() == pytest.approx(ulma(row).mean().item())
    assert gradient(loss, row).isfinite().all()


@pytest.mark.parametrize("is_exact", [True, False])
def test_6_scores_are_fitted_only_with_the_true_c(is_exact):
    beta = 0.5
    reference = torch.log_softmax(torch.tensor([0.3, 0.0, -0.4, 0.1], dtype=F64), -1)
    scores = torch.tensor([1.5, 0.2, -0.3, 0.6], dtype=F64)
    best = torch.softmax(reference + scores / beta, -1)
    c = beta * torch.logsumexp(reference + scores / beta, -1) if is_exact else 0.0
    logits = reference.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        row = tabular(torch.log_softmax(logits, -1), reference, scores)
        value = (
            reference.exp() * pointwise_dpo(row, beta=beta, c=c, label_mode="continuous")
        ).sum()
        value.backward()
        return value

    optimizer.step(loss)
    error = (torch.softmax(logits, -1) - best).abs().max().item()
    assert error < 1e-3 if is_exact else error > 0.05


def tabular(logprobs, reference, scores, is_demo=None):
    """One row whose columns are the actions; keeps the graph of `logprobs`."""
    zeros = torch.zeros_like(reference[None])
    return Replies(
        logprobs=logprobs[None],
        ref_logprobs=reference[None],
        lengths=zeros + 1,
        scores=scores[None],
        is_demo=zeros.bool() if is_demo is None else is_demo[None],
    )


def test_7_ulma_raises_the_liked_lowers_the_disliked_and_lets_go_of_it():
    reference = torch.log_softmax(torch.zeros(4, dtype=F64), -1)
    scores = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=F64)
    seen = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=F64)  # replies 0 and 1 are the data
    logits = reference.clone().requires_grad_()
    for _ in range(300):
        row = tabular(torch.log_softmax(logits, -1), reference, scores, scores.bool())
        (slope,) = torch.autograd.grad((ulma(row, beta=1.0) * seen).sum(), logits)
        logits = (logits - 0.5 * slope).detach().requires_grad_()
    p = torch.softmax(logits, -1)
    assert p[0] > 0.9
    assert p[1] < 0.05

    for log_p, expected in ((-math.log(4), 0.5), (-10.0, 1.8e-4), (-40.0, 1e-16)):
        row = replies([log_p], [-math.log(4)], scores=[0.0])
        assert gradient(ulma(row, beta=1.0), row).item() == pytest.approx(
            expected, rel=0.2, abs=1e-15
        )
        row = replies([log_p], [-math.log(4)], scores=[0.0])
        assert gradient(unlikelihood(row), row).item() == 1


def test_unlikelihood_is_nll_of_the_liked_less_that_of_the_others():
    row = replies([-12.0, -15.0], lengths=[6.0, 10.0], scores=[1.0, 0.0])
    assert unlikelihood(row)[0].tolist() == pytest.approx([2.0, -1.5])
    assert unlikelihood(row, logp_reduction="sum")[0].tolist() == pytest.approx([12.0, -15.0])
    assert unlikelihood(row, weight=0.0)[0].tolist() == pytest.approx([2.0, 0.0])


@pytest.mark.parametrize(("logp_reduction", "factor"), [("token_mean", 1.0), ("sum", 2.0)])
def test_8_saying_everything_twice_doubles_r_only_if_tokens_are_summed(logp_reduction, factor):
    once = replies([-12.0], [-13.0], [6.0])
    twice = replies([-24.0], [-26.0], [12.0])
    options = {"label_mode": "continuous", "logp_reduction": logp_reduction}
    r_once, r_twice = (pointwise_dpo(of, **options).sqrt().item() for of in (once, twice))
    assert r_twice == pytest.approx(factor * r_once)


def test_9_pairs_become_twice_as_many_points_half_of_them_demonstrations():
    points = pairs_to_points(random_replies(7, 2))
    assert points.scores.numel() == 14
    assert points.is_demo.sum() == 7
    assert points.scores.tolist() == [[1.0, 0.0]] * 7
    assert points.is_demo.tolist() == [[True, False]] * 7
    with pytest.raises(ValueError, match="2 columns"):
        pairs_to_points(random_replies(2, 3))


def test_kto_gives_its_reference_values():
    row = replies([-12.0, -15.0], [-13.0, -14.0], scores=[1.0, 0.0])
    loss = kto(row, torch.tensor(0.5))
    assert loss[0].tolist() == pytest.approx([0.487502604, 0.462570155], abs=1e-9)
    weighted = kto(row, torch.tensor(0.5), desirable=2.0, undesirable=3.0)
    assert weighted[0].tolist() == pytest.approx([0.975005208, 1.387710465], abs=1e-8)


def test_no_gradient_reaches_kto_s_baseline():
    row = replies([-12.0, -15.0], [-13.0, -14.0], scores=[1.0, 1.0])
    baseline = row.log_ratios.mean()
    fixed = gradient(kto(row, baseline.detach()), row)
    torch.testing.assert_close(gradient(kto(row, baseline), row), fixed)


def test_c_is_estimated_from_the_scores_of_the_reference_s_replies():
    c = estimate_c(torch.tensor([[1.0, 2.0], [3.0, 3.0]]), beta=0.5)
    by_hand = 0.5 * math.log((math.exp(2) + math.exp(4)) / 2)
    assert c.tolist() == [[pytest.approx(by_hand)], [pytest.approx(3.0)]]
    assert estimate_c(torch.tensor([[1e4, -1e4]]), beta=0.1).isfinite().all()


def test_scores_are_centred_on_the_reference_s_mean():
    centred = torch.tensor([[2.0, 5.0]]) - mean_score(torch.tensor([[1.0, 2.0, 3.0]]))
    assert centred.tolist() == [[0.0, 3.0]]


EVERY = [
    lambda row: pointwise_dpo(row, c=0.3),
    lambda row: pointwise_dpo(row, label_mode="continuous"),
    lambda row: ulma(row, logp_reduction="token_mean"),
    lambda row: unlikelihood(row),
    lambda row: kto(row, torch.tensor(0.5)),
]


@pytest.mark.parametrize("loss", EVERY)
def test_gradients_are_those_of_central_differences(loss):
    assert_slope_is_numerical(loss, labelled())


@pytest.mark.parametrize("loss", EVERY)
@pytest.mark.parametrize("h", [1e4, -1e4])
def test_log_ratios_of_10000_stay_finite_in_float32(loss, h):
    zeros = torch.zeros(1, 2)
    row = Replies(
        logprobs=(zeros - 1e4 + h).requires_grad_(),
        ref_logprobs=zeros - 1e4,
        lengths=zeros + 1,
        scores=torch.tensor([[1.0, 0.0]]),
        is_demo=zeros.bool(),
    )
    value = loss(row)
    assert value.isfinite().all()
    assert gradient(value, row).isfinite().all()
