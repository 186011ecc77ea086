"""The few figures of a run that people look at first, as text."""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

NUM_KEPT = 40
"""Values of each figure, the newest last."""
BLOCKS = "▁▂▃▄▅▆▇█"
PLAIN_BLOCKS = "_.-~=+*#"
"""For consoles that know ASCII alone."""


class Figure(NamedTuple):
    """How one metric is shown."""

    metric: str
    label: str
    form: str
    unit: str

    def change(self, value: float) -> str:
        """`+0.250`."""
        return f"{value:+{self.form}}"


FIGURES: tuple[Figure, ...] = (
    # the first of several metrics with one label wins
    Figure("reward/total/mean", "reward", ".3f", ""),
    Figure("reward/gold/mean", "gold", ".3f", ""),
    Figure("validation/accuracy", "accuracy", ".1%", ""),
    Figure("accuracy", "accuracy", ".1%", ""),
    Figure("kl/ref_k1", "KL", ".2f", " nats"),
    Figure("length/mean", "length", ".1f", " tokens"),
    Figure("loss/nll", "loss", ".4g", ""),
    Figure("loss/bradley_terry", "loss", ".4g", ""),
    Figure("loss/policy", "loss", ".4g", ""),
    Figure("loss/preference", "loss", ".4g", ""),
    Figure("tokens_per_s", "", ",.0f", " tokens/s"),
)
WITH_ENTROPY = (*FIGURES[:5], Figure("entropy", "entropy", ".2f", " nats"), *FIGURES[5:])
"""Where there is room for one more."""


def present(figures: Sequence[Figure], metrics: Mapping[str, object]) -> Iterator[Figure]:
    """Those that there are values of, one for each label."""
    labels = set()
    for figure in figures:
        if figure.metric in metrics and figure.label not in labels:
            labels.add(figure.label)
            yield figure


def readings(metrics: Mapping[str, float]) -> list[str]:
    """`reward 0.412`, `KL 2.10 nats`, ...: what there is, in the order of `FIGURES`."""
    return [
        f"{figure.label} {metrics[figure.metric]:{figure.form}}{figure.unit}".strip()
        for figure in present(FIGURES, metrics)
    ]


class History:
    """The first value of every metric, and the last `NUM_KEPT`."""

    def __init__(self) -> None:
        self.first: dict[str, float] = {}
        self._last: dict[str, deque[float]] = {}

    def add(self, metrics: Mapping[str, float]) -> None:
        """The metrics of one step."""
        for name, value in metrics.items():
            self.first.setdefault(name, value)
            self._last.setdefault(name, deque(maxlen=NUM_KEPT)).append(value)

    def last(self, name: str) -> list[float]:
        """Oldest first; empty where the metric was never seen."""
        return list(self._last.get(name, ()))


def sparkline(values: Sequence[float], width: int, blocks: str = BLOCKS) -> str:
    """The last `width` values as bars from their lowest to their highest, one letter each.

    >>> sparkline([1.0, 2.0, 3.0, float("nan"), 2.0], 4)
    '▅█ ▅'
    """
    shown = values[-width:] if width > 0 else []
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return " " * len(shown)
    low, span = min(finite), max(finite) - min(finite)
    top = len(blocks) - 1
    return "".join(
        " "
        if not math.isfinite(value)
        else blocks[round((value - low) / span * top) if span > 0 else top // 2]
        for value in shown
    )
