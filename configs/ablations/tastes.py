"""Rewards for ablations on the built-in world: what its two groups of annotators really like."""

from collections.abc import Mapping, Sequence
from typing import Any

from rl.world import individual_reward
from rl.world.generate import MAJORITY, MINORITY

Rows = Sequence[Mapping[str, Any]]


def majority(prompts: Sequence[str], replies: Sequence[str], rows: Rows) -> list[float]:
    """Of ten annotators in eleven."""
    return individual_reward(MAJORITY, prompts, replies, rows)


def minority(prompts: Sequence[str], replies: Sequence[str], rows: Rows) -> list[float]:
    """Of the eleventh."""
    return individual_reward(MINORITY, prompts, replies, rows)
