"""Labels of a figure that do not stand in its key but follow from the run's configuration."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.metrics.table import find

MIXTURE = "mixture"
"""Folder of a run that holds the trainings it is made of."""


def run_name(run_dir: str | Path) -> str:
    """What a run is called among others, as label and in loggers: the name of its folder.

    A run that is part of something is called by its place in that.

    >>> run_name("runs/first"), run_name("runs/grid/seed=0/low")
    ('first', 'grid/seed=0/low')
    """
    parts = Path(os.path.abspath(run_dir)).parts
    first = len(parts) - 1
    while first > 1 and ("=" in parts[first] + parts[first - 1] or parts[first] == MIXTURE):
        first -= 1
    return "/".join(parts[first:])


def labels_of(key: str, config: Mapping[str, Any]) -> dict[str, str]:
    """All labels of a key, but for `run` and `actor`; raises KeyError for one of no metric."""
    found = find(key)
    if found is None:
        raise KeyError(f"{key} is no figure of cluster.metrics.table")
    metric, labels = found
    if "of" in metric.more:
        return labels | {"of": kind_of_reward(labels["reward"], config)}
    return dict(labels)


def kind_of_reward(name: str, config: Mapping[str, Any]) -> str:
    """`part` for a part of a reward, `gold` for the truth by rule, `judge` for all others."""
    if "/" in name:
        return "part"
    feedback = config.get("feedback")
    rewards = feedback.get("rewards") if isinstance(feedback, Mapping) else None
    reward = (rewards or {"gold": {"kind": "gold"}}).get(name)
    return "gold" if isinstance(reward, Mapping) and reward.get("kind") == "gold" else "judge"
