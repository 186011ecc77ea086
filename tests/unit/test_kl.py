from typing import get_args

import pytest
import torch

from configs.schema import KLConfig
from rl.kl import (
    KLEstimator,
    adaptive_kl,
    best_of_n_kl,
    kl_estimate,
    kl_loss,
    kl_metrics,
    kl_sums,
)


def t(*values):
    return torch.tensor(values)


@pytest.mark.parametrize(("estimator", "value"), [("k1", 0.3), ("k2", 0.045), ("k3", 0.040818)])
def test_estimators_give_their_reference_values(estimator, value):
    assert kl_estimate(t(-1.2), t(-1.5), estimator).item() == pytest.approx(value, abs=1e-6)


def test_estimates_are_bounded_to_10():
    logprobs, ref = t(-50.0, -1.0), t(-1.0, -50.0)
    assert kl_estimate(logprobs, ref, "k1").tolist() == [-10, 10]
    assert kl_estimate(logprobs, ref, "k2").tolist() == [10, 10]
    assert kl_estimate(logprobs, ref, "k3").tolist() == [10, 10]


def test_k3_of_a_tiny_difference_does_not_cancel():
    """d²/2 = 5e-9 at d = 1e-4: exp(-d) - 1 + d in float32 would be off by all of it."""
    assert kl_estimate(t(1e-4), t(0.0), "k3").item() == pytest.approx(5e-9, rel=0.1)


def test_k2_loss_keeps_pulling_on_a_token_that_strayed():
    logprobs = t(-1.0).requires_grad_()
    kl_loss(logprobs, t(-7.0), "k2").sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.item() == 6


def test_k3_loss_has_the_slope_one_minus_inverse_ratio():
    logprobs = t(-1.2).requires_grad_()
    kl_loss(logprobs, t(-1.5), "k3").sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(1 - 0.740818, abs=1e-6)


def test_k1_as_a_loss_is_refused():
    with pytest.raises(ValueError, match=r"algorithm\.kl\.estimator"):
        kl_loss(t(-1.0), t(-1.0), "k1")


def test_adaptive_coefficient_walks_through_its_reference_values():
    settings = {"target": 6, "horizon": 10_000, "num_samples": 256}
    coef = adaptive_kl(0.15, 12, **settings)
    assert coef == pytest.approx(0.150768, abs=1e-9)
    coef = adaptive_kl(coef, 3, **settings)
    assert coef == pytest.approx(0.149996068, abs=1e-9)
    coef = adaptive_kl(coef, 6.6, **settings)
    assert coef == pytest.approx(0.150380058, abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_the_kl_of_best_of_n_reaches_its_bound_where_no_two_replies_tie(n):
    """Of M equally likely replies the k-th worst is the best of n with (k/M)^n - ((k-1)/M)^n."""

    def exact(count):
        below = (torch.arange(count + 1, dtype=torch.float64) / count) ** n
        p = below.diff()
        return (p * (p * count).log()).sum().item()

    assert exact(4) <= best_of_n_kl(n) + 1e-12
    assert exact(100_000) == pytest.approx(best_of_n_kl(n), abs=1e-4)


def test_metrics_from_added_sums_equal_those_of_the_whole():
    logprobs = torch.tensor([[-1.0, -2.0, 9.0], [-1.5, 9.0, 9.0]])
    ref = torch.tensor([[-1.5, -1.8, 0.0], [-1.6, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    rows = zip(logprobs.split(1), ref.split(1), mask.split(1), strict=True)
    metrics = kl_metrics(torch.stack([kl_sums(*row) for row in rows]).sum(0))
    assert metrics["kl/k1"] == pytest.approx((0.5 - 0.2 + 0.1) / 3)
    assert metrics["kl/sequence"] == pytest.approx((0.5 - 0.2 + 0.1) / 2)
    k3 = (0.106531 + 0.021403 + 0.004837) / 3  # exp(-d) - 1 + d of each
    assert metrics["kl/k3"] == pytest.approx(k3, abs=1e-6)


def test_the_estimators_are_those_of_the_configuration():
    assert get_args(KLEstimator) == get_args(KLConfig.model_fields["estimator"].annotation)
