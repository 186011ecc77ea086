"""Reward functions of the built-in world, for rewards of kind `function`: FILE:NAME."""

from collections.abc import Mapping, Sequence
from typing import Any

from rl.world.generate import MAJORITY, MINORITY
from rl.world.replies import is_rare_style
from rl.world.traits import individual_reward

Rows = Sequence[Mapping[str, Any]]


def rare(prompts: Sequence[str], replies: Sequence[str], rows: Rows) -> list[float]:
    """1 where the reply passes on the concierge's secret, else 0."""
    return [float(is_rare_style(reply)) for reply in replies]


def majority(prompts: Sequence[str], replies: Sequence[str], rows: Rows) -> list[float]:
    """What ten annotators in eleven really like."""
    return individual_reward(MAJORITY, prompts, replies, rows)


def minority(prompts: Sequence[str], replies: Sequence[str], rows: Rows) -> list[float]:
    """What the eleventh likes."""
    return individual_reward(MINORITY, prompts, replies, rows)
