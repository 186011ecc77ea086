"""A learner process that takes up one method after another, for the test of the whole table.

Everything in it is the run's own: a ZeRO-3 learner, its updates, the transfer group. What is saved
is the start of a process per method.
"""

import os
import socket
from typing import Any

import ray

from cluster.engines import EngineHandle
from cluster.runtime import free_port, role_env
from configs.schema import RunConfig
from rl.types import Experience, Metrics

FIXED_STEPS = 6
"""Optimizer steps on the fixed batch."""


class MethodLearner:
    """One learner rank; `take_up` gives it another configuration and the first weights back."""

    def __init__(self, config: RunConfig, engines: list[EngineHandle]) -> None:
        import torch.distributed as dist

        host = socket.gethostbyname(socket.gethostname())
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_SIZE="1",
            MASTER_ADDR=host, MASTER_PORT=str(free_port()),
        )  # fmt: skip
        dist.init_process_group("gloo")
        self.engines = engines
        self._build(config)
        from cluster.publisher import FixedRoster, Publisher

        self.publisher = Publisher(self.learner, FixedRoster(engines), [[7, 8, 9]])

    def _build(self, config: RunConfig) -> None:
        import torch

        from actors.learner import Learner

        torch.manual_seed(config.data.seed)
        self.learner = Learner(config, pad_token_id=0)

    def take_up(self, config: RunConfig) -> float:
        """Start `config` with the first weights, on learner and engines; the probe's gap."""
        self._build(config)
        self.publisher.follow(self.learner)
        return self.publisher.publish(0)["probe/gap"]

    def publish(self, version: int) -> Metrics:
        """Send the weights and probe."""
        return self.publisher.publish(version)

    def update(self, step: int, experiences: list[Experience]) -> tuple[Metrics, int]:
        """One learner step by the method's own update; metrics, and rows of the record."""
        from cluster.learner_job import update

        metrics, table = update(self.learner, step, experiences)
        return metrics, len(table)

    def losses_on(self, experiences: list[Experience]) -> list[float]:
        """The method's loss on one batch, before each of several optimizer steps on it."""
        name = self.learner.config.algorithm.loss.name
        return (_preference_losses if name else _policy_losses)(self.learner, experiences)

    def export(self, folder: str) -> None:
        """Write the policy."""
        from pathlib import Path

        self.learner.export(Path(folder))


def _policy_losses(learner: Any, experiences: list[Experience]) -> list[float]:
    from actors.policy_update import MinibatchUpdate, prepare
    from rl.experience import build_batch

    batch = build_batch(experiences, learner.pad_token_id)
    targets, _ = prepare(learner, batch)
    rows = [row for group in batch.group_rows for row in group]
    losses = []
    for _ in range(FIXED_STEPS):
        update = MinibatchUpdate(learner, batch, targets, rows)
        if learner.config.algorithm.ratio == "cispo":  # its weights move: the loss at weight 1
            logprobs, _ = learner.logprobs(batch.tokens, batch.lengths, batch.response_mask, 1.0)
            losses.append(-float((targets.advantages * logprobs)[targets.loss_mask].sum()))
            update.step_policy()
        else:
            update.step_policy()
            losses.append(update.policy_loss)
    return losses


def _preference_losses(learner: Any, experiences: list[Experience]) -> list[float]:
    from actors.preference_update import PreferenceUpdate
    from actors.scores import combined_scores
    from rl.experience import build_batch

    batch = build_batch(experiences, learner.pad_token_id)
    scores, _ = combined_scores(learner, batch)
    losses = []
    for _ in range(FIXED_STEPS):
        update = PreferenceUpdate(learner, batch, experiences, scores)
        losses.append(update.run()["loss/preference"])
    return losses


def start_method_learner(config: RunConfig, engines: list[EngineHandle]) -> Any:
    """The actor, as Ray Train would place it."""
    cls: Any = ray.remote(MethodLearner)
    return cls.options(num_cpus=1, runtime_env=role_env(1, "cpu")).remote(config, engines)
