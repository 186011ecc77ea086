"""RPO: reference values and properties T1.1-T1.8 of the methods' specification."""

import itertools
import math

import pytest
import torch

from rl.advantages import rloo
from rl.losses.replies import Replies
from rl.losses.rpo import divergence, implicit_rewards, rpo
from tests.unit.made_up_replies import (
    F64,
    assert_slope_is_numerical,
    example_a,
    gradient,
    random_replies,
    replies,
)

DISTANCES = ["sq", "bwd", "fwd", "ce"]
DPO = {"target": "hard"}
CDPO = {"distance": "ce", "target": "smoothed"}
EXO = {"distance": "fwd", "target": "smoothed"}
INFO_NCA = {"distance": "ce"}
SIMPO = {"target": "hard", "implicit": "mean_logprob"}
REBEL = {"distance": "sq", "scale": 2.0}
IPO_01 = {"distance": "sq", "target": "margin", "margin": 0.5, "beta": 0.1, "scale": 2 / 0.1**2}
"""IPO at tau = 0.1."""
ENTROPY_01 = 0.325082973
"""Entropy of a coin that shows heads once in ten, nats."""


def pair(scale=1.0):
    return replies([-1.2, -3.7], scores=[2.0 * scale, 0.5 * scale])


def four():
    return replies([-1.0, -2.5, 0.3, -4.0], scores=[1.0, 0.2, 2.0, -0.5])


def close(loss, value, tolerance=1e-8):
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(value, abs=tolerance)


@pytest.mark.parametrize(
    ("distance", "value"), [("bwd", 0.146494237), ("fwd", 0.172753232), ("sq", 0.78125)]
)
def test_pairs_give_their_reference_values(distance, value):
    close(rpo(pair(), distance=distance), value)


@pytest.mark.parametrize(
    ("distance", "value"), [("bwd", 0.250794164), ("fwd", 0.282675326), ("sq", 0.528733333)]
)
def test_four_replies_give_their_reference_values(distance, value):
    close(rpo(four(), distance=distance), value)


@pytest.mark.parametrize(
    ("distance", "slopes"),
    [
        ("sq", [-0.010888889, 0.018, -0.049555556, 0.042444444]),
        ("bwd", [0.003960234, 0.012777844, -0.031462340, 0.014724262]),
    ],
)
def test_four_replies_give_their_reference_gradients(distance, slopes):
    row = four()
    assert gradient(rpo(row, distance=distance), row)[0].tolist() == pytest.approx(slopes, abs=1e-9)


def test_dpo_cdpo_and_ipo_give_their_reference_values():
    close(rpo(pair(), **DPO), 0.575939420)
    close(rpo(pair(), **CDPO, epsilon=0.1), 0.600939420)
    close(rpo(pair(), **IPO_01), 6.25)


def test_the_survey_s_example_gives_its_values_for_every_member_of_the_family():
    a = example_a()
    close(rpo(a, **DPO), 0.598138869)
    close(rpo(a, **CDPO, epsilon=0.1), 0.618138869)
    close(rpo(a, **EXO, epsilon=0.1), 0.406304251)
    close(rpo(a, **IPO_01), 9.0)
    close(rpo(a, **IPO_01, implicit="mean_log_ratio"), 22.404444444)
    close(rpo(a, **SIMPO, beta=2.0, gamma=1.0), 2.126928011)


def test_f_dpo_s_implicit_rewards_are_the_slopes_of_their_divergences():
    u = torch.tensor([math.e, 1 / math.e], dtype=F64)
    forward, js = -1 / u, torch.log(2 * u / (1 + u))
    close(rpo(example_a(), **DPO, implicit="forward_kl"), _dpo_of(forward))
    close(rpo(example_a(), **DPO, implicit="js"), _dpo_of(js))


def _dpo_of(slopes):
    return -math.log(torch.sigmoid(0.1 * (slopes[0] - slopes[1])).item())


@pytest.mark.parametrize(("eta", "value"), [(10.0, 0.575934602), (30.0, 0.575939420)])
def test_t1_1_a_saturated_target_is_dpo(eta, value):
    close(rpo(pair(), eta=eta), value)


@pytest.mark.parametrize("swap", [False, True])
def test_t1_1_a_saturated_target_has_the_loss_and_gradient_of_dpo_in_float32(swap):
    chosen_first, scores = torch.randn(2, 64, 2, generator=torch.Generator().manual_seed(1))
    scores = scores.sort(-1, descending=True).values * 1e4
    columns = [1, 0] if swap else [0, 1]
    zeros = torch.zeros(64, 2)

    def record(values, scores):
        return Replies(
            logprobs=values.clone().requires_grad_(),
            ref_logprobs=zeros,
            lengths=zeros + 1,
            scores=scores,
            is_demo=zeros.bool(),
        )

    soft = record(chosen_first[:, columns] * 20, scores[:, columns])
    hard = record(chosen_first * 20, zeros)
    ours, dpo = rpo(soft), rpo(hard, **DPO)
    torch.testing.assert_close(ours, dpo, atol=1e-6, rtol=0)
    slopes = gradient(ours, soft)[:, columns]
    torch.testing.assert_close(slopes, gradient(dpo, hard), atol=1e-6, rtol=0)


def test_t1_2_two_replies_collapse_to_the_pair_forms():
    row = random_replies(50, 2)
    a, b = 0.1 * row.log_ratios, row.scores
    da, db = (a[:, 0] - a[:, 1]).detach(), b[:, 0] - b[:, 1]
    q, p = torch.sigmoid(da), torch.sigmoid(db)

    def kl(x, y):
        return x * torch.log(x / y) + (1 - x) * torch.log((1 - x) / (1 - y))

    expected = {"sq": (da - db).square() / 2, "bwd": kl(p, q), "fwd": kl(q, p)}
    for distance, value in expected.items():
        torch.testing.assert_close(rpo(row, distance=distance), value, atol=1e-9, rtol=0)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("k", [2, 5])
def test_t1_3_constants_added_to_a_row_change_nothing(distance, k):
    row, c = random_replies(6, k), torch.linspace(-40, 40, 6, dtype=F64)[:, None]
    loss = rpo(row, distance=distance)
    slopes = gradient(loss, row)
    torch.testing.assert_close(slopes.sum(-1), torch.zeros(6, dtype=F64), atol=1e-9, rtol=0)
    for moves in itertools.product([0, 1], repeat=3):
        s, ref, r = (m * c for m in moves)
        moved = replies(row.logprobs + s, row.ref_logprobs + ref, row.lengths, row.scores + r)
        shifted = rpo(moved, distance=distance)
        torch.testing.assert_close(shifted, loss, atol=1e-6, rtol=0)
        torch.testing.assert_close(gradient(shifted, moved), slopes, atol=1e-6, rtol=0)


@pytest.mark.parametrize("k", [2, 3, 4, 8])
def test_t1_4_the_gradient_of_sq_is_that_of_rloo_with_the_kl_in_the_reward(k):
    row, beta = random_replies(7, k), 0.3
    loss = rpo(row, distance="sq", beta=beta)
    gap = (row.scores - beta * row.log_ratios).detach()
    torch.testing.assert_close(gradient(loss, row), -beta / (k - 1) * rloo(gap))
    pairs = sum((gap[:, i] - gap[:, j]).square() / 2 for i in range(k) for j in range(i))
    torch.testing.assert_close(pairs, (k - 1) ** 2 * loss)


def test_t1_4_the_advantages_have_their_reference_values():
    row = four()
    advantages = rloo((row.scores - 0.1 * row.log_ratios).detach())[0].tolist()
    expected = [0.326666667, -0.54, 1.486666667, -1.273333333]
    assert advantages == pytest.approx(expected, abs=1e-9)


def test_t1_5_members_equal_their_classic_losses():
    row = random_replies(40, 2)
    h_w, h_l = row.log_ratios.detach().unbind(-1)
    delta = h_w - h_l

    def log_s(x):
        return torch.log(torch.sigmoid(x))

    def same(ours, classic):
        torch.testing.assert_close(ours, classic, atol=1e-9, rtol=0)

    same(rpo(row, **DPO), -log_s(0.1 * delta))
    same(rpo(row, **IPO_01), (delta - 1 / 0.2).square())
    same(rpo(row, **CDPO, epsilon=0.2), -0.8 * log_s(0.1 * delta) - 0.2 * log_s(-0.1 * delta))
    q = torch.sigmoid(0.1 * delta)
    exo = q * torch.log(q / 0.7) + (1 - q) * torch.log((1 - q) / 0.3)
    same(rpo(row, **EXO, epsilon=0.3), exo)
    p = (row.logprobs / row.lengths).detach()
    simpo = -log_s(2.5 * (p[:, 0] - p[:, 1]) - 1.4)
    same(rpo(row, **SIMPO, beta=2.5, gamma=1.4), simpo)
    gaps = row.scores[:, 0] - row.scores[:, 1]
    same(rpo(row, **REBEL, beta=1 / 0.7), (delta / 0.7 - gaps).square())


def test_t1_5_cross_entropy_is_bwd_plus_the_entropy_of_the_target():
    close(rpo(pair(), distance="bwd", target="smoothed", epsilon=0.1) + ENTROPY_01, 0.600939420)
    row = random_replies(5, 4)
    target = torch.softmax(row.scores / 0.5, -1)
    info_nca = -(target * torch.log_softmax(0.1 * row.log_ratios, -1)).sum(-1)
    torch.testing.assert_close(rpo(row, **INFO_NCA, eta=1 / 0.5), info_nca)
    entropy = -(target * target.log()).sum(-1)
    torch.testing.assert_close(rpo(row, distance="bwd", eta=2.0) + entropy, info_nca)


@pytest.mark.parametrize("distance", ["sq", "bwd", "fwd"])
@pytest.mark.parametrize(("beta", "eta"), [(0.5, 1.0), (1.0, 2.0)])
def test_t1_6_the_optimum_is_the_reference_tilted_by_the_reward(distance, beta, eta):
    g = torch.Generator().manual_seed(2)
    reference, rewards = torch.randn(2, 6, generator=g, dtype=F64).unbind(0)
    reference = torch.log_softmax(reference, -1)
    expected = torch.softmax(reference + 2 * rewards, -1)  # beta / eta is 1/2 in both settings
    logits = reference.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=300, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        h = torch.log_softmax(logits, -1) - reference
        value = divergence(distance, beta * h[None], eta * rewards[None]).sum()
        value.backward()
        return value

    optimizer.step(loss)
    distance_to_it = (torch.softmax(logits, -1) - expected).abs().sum() / 2
    assert distance_to_it < 1e-3


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("k", [2, 4])
def test_t1_7_gradients_are_those_of_central_differences(distance, k):
    assert_slope_is_numerical(lambda row: rpo(row, distance=distance), random_replies(3, k))


@pytest.mark.parametrize(
    "implicit", ["mean_log_ratio", "logprob", "mean_logprob", "forward_kl", "js"]
)
def test_t1_7_implicit_rewards_have_the_gradients_of_central_differences(implicit):
    assert_slope_is_numerical(lambda row: rpo(row, **DPO, implicit=implicit), random_replies(3, 2))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "choice",
    [
        *({"distance": d} for d in DISTANCES),
        DPO,
        CDPO,
        EXO,
        SIMPO,
        DPO | {"implicit": "forward_kl"},
    ],
)
def test_t1_7_margins_of_10000_stay_finite(choice, sign):
    for score in (1e4, -1e4, 0.0):
        logprobs = torch.tensor([[0.0, -1e4 * sign]])
        row = Replies(
            logprobs=logprobs.requires_grad_(),
            ref_logprobs=torch.zeros(1, 2),
            lengths=torch.ones(1, 2),
            scores=torch.tensor([[score, 0.0]]),
            is_demo=torch.zeros(1, 2).bool(),
        )
        loss = rpo(row, **choice, beta=1.0)
        assert loss.isfinite().all()
        assert gradient(loss, row).isfinite().all()


def test_t1_8_twice_sq_is_the_squared_loss_of_nemo_aligner():
    row = replies([-7.0, -9.5], [-8.0, -8.5], scores=[1.0, 0.0])
    close(rpo(row, distance="sq", scale=2.0, beta=0.2), (0.2 * 2.0 - 1.0) ** 2)


def test_targets_of_pairs_do_not_read_further_columns():
    wide = replies([-12.0, -15.0, 3.0], [-13.0, -14.0, -2.0], scores=[0, 0, 9])
    close(rpo(wide, **DPO), 0.598138869)
    close(rpo(wide, **CDPO), 0.618138869)


def test_no_gradient_reaches_the_target():
    row = four()
    b = row.logprobs * 2
    slope = gradient(divergence("fwd", 0.1 * row.log_ratios, b), row)
    expected = four()
    fixed = divergence("fwd", 0.1 * expected.log_ratios, b.detach())
    torch.testing.assert_close(slope, gradient(fixed, expected))


@pytest.mark.parametrize("distance", ["sq", "fwd"])
def test_an_infinite_target_is_refused_where_the_distance_would_be_infinite(distance):
    with pytest.raises(ValueError, match="target is hard"):
        rpo(pair(), distance=distance, target="hard")


@pytest.mark.parametrize("epsilon", [0.0, 1.0, -0.1])
def test_a_smoothing_without_a_finite_target_is_refused(epsilon):
    with pytest.raises(ValueError, match="epsilon"):
        rpo(pair(), target="smoothed", epsilon=epsilon)


def test_a_single_reply_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        rpo(replies([-1.0], scores=[1.0]))


def test_mean_log_ratios_are_per_token():
    per_token = implicit_rewards(example_a(), "mean_log_ratio")
    assert per_token[0].tolist() == pytest.approx([1 / 6, -1 / 10])
