"""Labels of a figure that do not stand in its key but follow from the run's configuration."""

from collections.abc import Mapping
from typing import Any

from cluster.metrics.table import find


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
