"""The learning rate over a run, as a factor of its peak."""

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def learning_rate_factor(
    step: int, *, schedule: Schedule, warmup_steps: int, num_steps: int, min_ratio: float
) -> float:
    """Factor in [0, 1] for optimizer step `step`, counted from 0, of `num_steps`.

    The first step already moves (1 / warmup_steps, not 0) and the last step of the warm-up has the
    full rate. linear and cosine then fall and would reach `min_ratio` at `num_steps`, one past the
    last step, so that this one moves too; beyond it the factor stays.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min((step - warmup_steps) / max(num_steps - warmup_steps, 1), 1.0)
    match schedule:
        case "constant":
            return 1.0
        case "linear":
            remaining = 1 - progress
        case "cosine":
            remaining = (1 + math.cos(math.pi * progress)) / 2
    return min_ratio + (1 - min_ratio) * remaining
