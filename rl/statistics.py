"""Intervals and paired comparisons for small samples, with numpy alone.

Every number that a report or a benchmark states goes with its uncertainty: a mean with Student's t,
a share with Wilson's interval, two policies on the same prompts with a paired bootstrap.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and its confidence interval, in the unit of the values."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """`a - b` on the same items: the mean difference, and how often `a` is the better one."""

    mean: float
    low: float
    high: float
    win_rate: float
    """Share of items with a > b; a tie counts half."""
    win_low: float
    win_high: float


def mean_interval(values: Values, level: float = 0.95) -> Interval:
    """Mean of independent values with its Student-t interval at confidence `level`.

    Raises ValueError for fewer than two values (one value says nothing of the spread).
    """
    data = _checked("values", values, at_least=2)
    error = data.std(ddof=1) / np.sqrt(len(data))
    reach = float(_t_quantile(level, len(data) - 1) * error)
    mean = float(data.mean())
    return Interval(mean=mean, low=mean - reach, high=mean + reach)


def best_of_n(scores: np.ndarray, n: int) -> np.ndarray:
    """(P,): expected best of `n` of each prompt's replies, from scores (P, N); unbiased.

    The mean over all subsets of size n: sum_k C(k - 1, n - 1) / C(N, n) * s_(k), scores in rising
    order. Raises ValueError for n outside 1 to N.
    """
    count = scores.shape[1]
    if not 1 <= n <= count:
        raise ValueError(f"best of {n} of {count} replies; give n from 1 to {count}")
    weights = [math.comb(k, n - 1) / math.comb(count, n) for k in range(count)]
    return np.sort(scores, axis=1) @ np.array(weights)


def proportion_interval(k: float, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of `k` successes in `n` tries; `k` may hold halves for ties.

    Unlike the normal approximation it stays inside [0, 1] and has a width at 0 of n and n of n
    (Wilson 1927, "Probable inference, the law of succession, and statistical inference").
    """
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"k of n: {k} of {n} is no proportion; give n >= 1 and 0 <= k <= n")
    z = NormalDist().inv_cdf((1 + _checked_level(level)) / 2)
    share = k / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # At k = 0 and k = n the exact bound is 0 or 1; rounding must not miss it.
    low = 0.0 if k == 0 else float(centre - reach)
    high = 1.0 if k == n else float(centre + reach)
    return Interval(mean=share, low=low, high=high)


def paired_bootstrap(
    a: Values,
    b: Values,
    *,
    level: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Compare two scores of the same items, `a[i]` with `b[i]`.

    The mean difference has a percentile-bootstrap interval over items. The win rate has Wilson's,
    which keeps its width where one side wins every item. Raises ValueError for unequal lengths.
    """
    first, second = _checked("a", a, at_least=1), _checked("b", b, at_least=1)
    if len(first) != len(second):
        raise ValueError(f"a has {len(first)} values and b {len(second)}; give one pair per item")
    differences = first - second
    tail = (1 - _checked_level(level)) / 2
    low, high = np.quantile(_resampled_means(differences, num_resamples, seed), [tail, 1 - tail])
    wins = float((differences > 0).sum() + 0.5 * (differences == 0).sum())
    share = proportion_interval(wins, len(differences), level)
    return Difference(
        mean=float(differences.mean()),
        low=float(low),
        high=float(high),
        win_rate=share.mean,
        win_low=share.low,
        win_high=share.high,
    )


def _resampled_means(values: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    """(num_resamples,) means of samples drawn with replacement, in slices of bounded memory."""
    random = np.random.default_rng(seed)
    n = len(values)
    rows = max(1, 2_000_000 // n)
    slices = [min(rows, num_resamples - start) for start in range(0, num_resamples, rows)]
    return np.concatenate([values[random.integers(n, size=(m, n))].mean(axis=1) for m in slices])


def _t_quantile(level: float, freedom: int) -> float:
    """The t with P(|T| <= t) = `level` for `freedom` degrees of freedom.

    With T = sqrt(freedom) * tan(u) the density in u is proportional to cos(u)^(freedom - 1), which
    is smooth on a bounded interval: sum it up, read off the angle, go back. Good to 7 digits.
    """
    # Beyond 40 standard deviations nothing is left; a narrow grid keeps large `freedom` exact.
    end = min(np.pi / 2, 40 / np.sqrt(freedom))
    angles = np.linspace(0, end, 200_001)
    density = np.cos(angles) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = np.interp(_checked_level(level), mass / mass[-1], angles)
    return float(np.sqrt(freedom) * np.tan(angle))


def _checked(name: str, values: Values, *, at_least: int) -> np.ndarray:
    """(n,) float64, or a ValueError that names the argument."""
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or len(data) < at_least:
        raise ValueError(f"{name}: give a flat list of at least {at_least} numbers")
    if not np.isfinite(data).all():
        raise ValueError(
            f"{name}[{int(np.argmin(np.isfinite(data)))}] is not finite; drop it first"
        )
    return data


def _checked_level(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level: {level} is no confidence level; give one between 0 and 1")
    return level
