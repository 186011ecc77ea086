"""From a row of the method table to the function that is its loss.

The table itself is `configs.methods.METHODS`; a loss is found by its name among the functions of
`rl.losses`, so a new pair loss is one function there and one row here.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

from rl.losses import listwise, pointwise, preference, rpo

FAMILIES: tuple[ModuleType, ...] = (rpo, preference, listwise, pointwise)
EXTRAS = ("explored", "baseline")
"""What some losses read beside the replies: the explored column (SELM, XPO), KTO's z."""


@dataclass(frozen=True, kw_only=True)
class PreferenceLoss:
    """A loss on whole replies."""

    function: Callable[..., Tensor]
    """(replies, ...) -> (P,), or (P, K) where each reply has a loss of its own."""
    needs: tuple[str, ...]
    """Which of `EXTRAS` it takes."""


def preference_loss(name: str) -> PreferenceLoss:
    """The loss of that name; ValueError where no family has one."""
    for family in FAMILIES:
        function = vars(family).get(name)
        if inspect.isfunction(function) and function.__module__ == family.__name__:
            takes = inspect.signature(function).parameters
            return PreferenceLoss(
                function=function, needs=tuple(extra for extra in EXTRAS if extra in takes)
            )
    families = ", ".join(family.__name__ for family in FAMILIES)
    raise ValueError(f"algorithm.loss.name={name}: no such function in {families}")
