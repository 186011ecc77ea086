"""A reward for ablations on the built-in world: whether a reply is in the rare better style."""

from collections.abc import Mapping, Sequence
from typing import Any

from rl.world import is_rare_style


def reward(
    prompts: Sequence[str], replies: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> list[float]:
    """1 where the reply passes on the concierge's secret, else 0."""
    return [float(is_rare_style(reply)) for reply in replies]
