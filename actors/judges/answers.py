"""What a judge answers with, and the check that it is an answer."""

import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

from rl.types import Rollout

Scores = dict[str, tuple[float, ...]]
"""(B,) per name; `name/part` beside `name`."""


def checked(name: str, scores: Any, rollouts: Sequence[Rollout]) -> tuple[float, ...]:
    """One finite float per reply, or `ValueError`: a failed score is never taken for a number."""
    is_list = not isinstance(scores, Mapping | Set | str | bytes)
    try:
        listed = list(scores) if is_list else None
    except TypeError:  # None, a single number, an array without dimensions
        listed = None
    if listed is None:
        raise ValueError(
            f"reward {name} returned {type(scores).__name__}; return a list of floats, one a reply"
        )
    if len(listed) != len(rollouts):
        raise ValueError(
            f"reward {name} returned {len(listed)} scores for {len(rollouts)} replies; "
            "return one per reply, in order"
        )
    numbers = []
    for index, score in enumerate(listed):
        try:
            number = float(score)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"reward {name} returned {score!r} for reply {index}; return a float"
            ) from error
        if not math.isfinite(number):
            raise ValueError(
                f"reward {name} returned {number} for reply {index} "
                f"({rollouts[index].text[:40]!r}); return a finite float"
            )
        numbers.append(number)
    return tuple(numbers)
