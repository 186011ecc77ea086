"""Intervals against closed forms and numbers worked out by hand."""

import itertools
import math

import numpy as np
import pytest

from rl.statistics import best_of_n, mean_interval, paired_bootstrap, proportion_interval


def test_mean_interval_of_three_values_is_students_t_with_two_degrees_of_freedom():
    # Mean 2, standard deviation 1, so the error is 1/sqrt(3). For two degrees of freedom
    # P(|T| <= t) = t / sqrt(2 + t^2), hence t = 0.95 * sqrt(2 / (1 - 0.95^2)) = 4.302653.
    interval = mean_interval([1, 2, 3])
    reach = 0.95 * math.sqrt(2 / (1 - 0.95**2)) / math.sqrt(3)
    assert interval.mean == 2
    assert interval.low == pytest.approx(2 - reach, abs=1e-6)
    assert interval.high == pytest.approx(2 + reach, abs=1e-6)


def test_mean_interval_of_two_values_uses_the_cauchy_quantile():
    # One degree of freedom: t = tan(0.95 * pi / 2) = 12.7062; error = (sqrt(2) / 2) / ... = 0.5.
    interval = mean_interval([0.0, 1.0])
    assert interval.high - 0.5 == pytest.approx(0.5 * math.tan(0.95 * math.pi / 2), rel=1e-6)


def test_mean_interval_of_many_values_is_the_normal_one():
    values = np.tile([-1.0, 1.0], 500_000)
    error = 1 / math.sqrt(1_000_000)
    assert mean_interval(values).high == pytest.approx(1.959964 * error, rel=1e-4)


def test_mean_interval_grows_with_the_level():
    narrow, wide = mean_interval([1, 2, 4], level=0.5), mean_interval([1, 2, 4], level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_mean_interval_covers_the_true_mean_as_often_as_it_says():
    random = np.random.default_rng(0)
    intervals = [mean_interval(random.normal(size=4)) for _ in range(400)]
    covered = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert 0.92 <= covered <= 0.98  # 0.95 +- 3 standard errors of 400 trials


def test_wilson_interval_of_five_in_ten_is_symmetric_around_a_half():
    # z = 1.96: centre (0.5 + 0.19207) / 1.38415 = 0.5, reach 1.96 / 1.38415 * sqrt(0.025 + 0.0096)
    interval = proportion_interval(5, 10)
    assert (interval.low, interval.mean, interval.high) == pytest.approx(
        (0.2366, 0.5, 0.7634), abs=1e-4
    )


def test_wilson_interval_at_the_edges_stays_inside_and_keeps_a_width():
    # With no success the upper bound is z^2 / (n + z^2) = 3.8415 / 13.8415.
    none, every = proportion_interval(0, 10), proportion_interval(10, 10)
    assert (none.low, none.high) == pytest.approx((0, 3.841459 / 13.841459), abs=1e-6)
    assert (every.low, every.high) == pytest.approx((1 - 3.841459 / 13.841459, 1), abs=1e-6)


def test_wilson_bounds_at_the_edges_are_exact_for_every_n():
    assert all(proportion_interval(0, n).low == 0 for n in range(1, 200))
    assert all(proportion_interval(n, n).high == 1 for n in range(1, 200))


def test_paired_bootstrap_of_two_differences_takes_their_three_possible_means():
    # Differences 1 and 3: a resample's mean is 1, 2 or 3 with chances 1/4, 1/2, 1/4. So the 2.5 %
    # and 97.5 % quantiles are 1 and 3, and the 30 % and 70 % quantiles are both 2.
    wide = paired_bootstrap([2, 5], [1, 2])
    narrow = paired_bootstrap([2, 5], [1, 2], level=0.4)
    assert (wide.mean, wide.low, wide.high) == (2, 1, 3)
    assert (narrow.low, narrow.high) == (2, 2)


def test_a_tie_counts_half_a_win():
    result = paired_bootstrap([1, 0, 5, 5], [0, 1, 5, 4])  # win, loss, tie, win
    assert result.win_rate == 0.625
    wilson = proportion_interval(2.5, 4)
    assert (result.win_low, result.win_high) == (wilson.low, wilson.high)


def test_swapping_the_sides_mirrors_the_difference():
    random = np.random.default_rng(1)
    a, b = random.normal(size=50), random.normal(size=50)
    there, back = paired_bootstrap(a, b), paired_bootstrap(b, a)
    assert back.mean == pytest.approx(-there.mean)
    assert back.low == pytest.approx(-there.high, abs=0.03)
    assert back.win_rate == pytest.approx(1 - there.win_rate)


def test_pairing_removes_what_the_items_share():
    # Items differ by +-100, the sides by exactly 1: paired, the interval has no width.
    items = np.random.default_rng(2).normal(scale=100, size=30)
    result = paired_bootstrap(items + 1, items)
    assert (result.low, result.high) == pytest.approx((1, 1))
    assert result.win_rate == 1
    assert result.win_low < 1


def test_the_bootstrap_interval_is_the_normal_one_for_many_items():
    values = np.random.default_rng(3).normal(size=2000)
    result = paired_bootstrap(values, np.zeros(2000))
    reach = 1.96 * values.std() / math.sqrt(2000)
    assert result.high - result.mean == pytest.approx(reach, rel=0.05)
    assert result.mean - result.low == pytest.approx(reach, rel=0.05)


def test_the_same_seed_gives_the_same_interval():
    a, b = [0.1, 0.5, 0.2, 0.9], [0.3, 0.1, 0.1, 0.2]
    assert paired_bootstrap(a, b, seed=7) == paired_bootstrap(a, b, seed=7)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mean_interval([1.0]), "at least 2"),
        (lambda: mean_interval([1.0, math.nan]), r"values\[1\] is not finite"),
        (lambda: mean_interval([1.0, 2.0], level=95), "level: 95"),
        (lambda: paired_bootstrap([1, 2], [1]), "a has 2 values and b 1"),
        (lambda: paired_bootstrap([], []), "at least 1"),
        (lambda: proportion_interval(3, 2), "3 of 2"),
        (lambda: proportion_interval(0, 0), "0 of 0"),
    ],
)
def test_input_that_means_nothing_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_best_of_n_is_the_mean_over_all_subsets():
    scores = np.array([[0.3, -1.0, 2.0, 0.5], [1.0, 1.0, 1.0, 1.0]])
    for n in (1, 2, 3, 4):
        expected = [np.mean([max(s) for s in itertools.combinations(row, n)]) for row in scores]
        assert best_of_n(scores, n) == pytest.approx(expected)
    with pytest.raises(ValueError, match="best of 5 of 4 replies"):
        best_of_n(scores, 5)
