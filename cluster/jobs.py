"""What a learner job is given, and its entry points for Ray Train.

Kept apart from `cluster.learner_job`, so that the driver and Ray Train's controller, which only
pass these on, load neither torch nor vLLM.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from configs.schema import RunConfig
from rl.types import Demonstration, PreferencePair, Prompt

Row = Demonstration | PreferencePair


@dataclass(frozen=True, kw_only=True)
class OnlineJob:
    """An online run, for every rank."""

    config: RunConfig
    pad_token_id: int
    collector: Any
    probes: list[list[int]]
    held_out: list[Prompt]


@dataclass(frozen=True, kw_only=True)
class OfflineJob:
    """SFT or reward-model training, for every rank."""

    config: RunConfig
    pad_token_id: int
    train: Sequence[Row]
    validation: Sequence[Row]


def online(arguments: dict[str, Any]) -> None:
    """Entry point of a rank of an online run."""
    from cluster.learner_job import learn_online

    learn_online(arguments["job"])


def offline(arguments: dict[str, Any]) -> None:
    """Entry point of a rank of SFT or reward-model training."""
    from cluster.learner_job import learn_offline

    learn_offline(arguments["job"])
