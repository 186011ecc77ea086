"""What every learner rank runs under Ray Train: for experience in stream, update, publish, report.

Ray Train starts this function again where a rank fails, at whatever world size is there; it goes on
from the newest whole checkpoint, and so do all records of the run.
"""

import functools
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import ray.train
import torch
from ray.train.torch import get_device
from torch.profiler import record_function

from actors.learner import Learner
from actors.policy_update import update_policy
from actors.preference_update import update_preference
from actors.supervised_update import objective
from cluster.batches import rollout_rows
from cluster.checkpoints.keeper import Checkpoints
from cluster.deadlines import watched
from cluster.errors import Unrecoverable, with_batch
from cluster.events import record
from cluster.files import replace_text
from cluster.jobs import OfflineJob, OnlineJob
from cluster.ledger import write_table
from cluster.metrics.telemetry import unix_now
from cluster.phases import set_phase
from cluster.profiling import profiled
from cluster.publisher import Publisher
from cluster.references import (
    latest_reference,
    mix_folders,
    reference_folder,
    reference_moves,
    sync_interval,
)
from cluster.roles import Role
from cluster.session import LiveRoster, Session
from cluster.space import room
from configs.schema import RunConfig
from rl.experience import experience_table
from rl.types import Experience, Metrics

logger = logging.getLogger(__name__)


def _start(config: RunConfig, pad_token_id: int) -> tuple[Learner, Checkpoints]:
    """Build this rank's learner, from the newest whole checkpoint where there is one."""
    context = ray.train.get_context()
    rank = context.get_world_rank()
    Role(config.cluster.run_dir, f"learner-{rank}").enter("start")
    # DeepSpeed would otherwise take every NUMA node of the machine for a rank.
    os.environ["LOCAL_SIZE"] = str(context.get_local_world_size())
    torch.manual_seed(config.data.seed)
    if config.cluster.device == "cuda":
        torch.cuda.set_device(get_device())
    with _in_time(config, rank, "start", "start_deadline_s"):
        learner = Learner(config, pad_token_id)
        checkpoints = Checkpoints(config, learner)
    logger.info("attempt %d goes on after step %d", checkpoints.attempt, learner.state.version)
    return learner, checkpoints


def _naming_full_disks(learn: Callable[[Any], None]) -> Callable[[Any], None]:
    """Whatever of a run cannot be written for want of room, the error says so."""

    @functools.wraps(learn)
    def named(job: OnlineJob | OfflineJob) -> None:
        with room(job.config.cluster.run_dir, "the record of a step"):
            learn(job)

    return named


@_naming_full_disks
def learn_online(job: OnlineJob) -> None:
    """The learner of an online run."""
    config = job.config
    learner, checkpoints = _start(config, job.pad_token_id)
    log = MetricsLog(config, learner)
    session, publisher = _open_session(job, learner, checkpoints.attempt)
    session.begin(learner.state.version)
    _answer(job, session, "before")
    steps = range(learner.state.version + 1, config.algorithm.num_steps + 1)
    for step in profiled(config, learner.rank, steps):
        started = time.monotonic()
        set_phase(config.cluster.run_dir, f"learner-{learner.rank}", "take")
        experiences, timing = session.take(step)
        taken = time.monotonic()
        with phase(learner, "update"):
            metrics, table = update(learner, step, experiences)
        trained = time.monotonic()
        with phase(learner, "sync"):
            if step % sync_interval(config) == 0 or step == config.algorithm.num_steps:
                metrics |= publisher.publish(step)
            if reference_moves(config, step):
                _move_reference(learner, job, session, step)
        session.advance(step)
        write_table(
            table,
            Path(config.cluster.run_dir)
            / "experience"
            / f"step={step:06d}"
            / f"rank={learner.rank}.parquet",
        )
        metrics |= timing | {"time/wait": taken - started, "time/train": trained - taken}
        metrics |= _staleness(learner, experiences, step)
        with phase(learner, "checkpoint"):
            metrics |= checkpoints.copy(step)
            log.write(step, metrics, started)
            checkpoints.upload()
    set_phase(config.cluster.run_dir, f"learner-{learner.rank}", "answer")
    _answer(job, session, "after")
    _finish(learner, checkpoints)


def _finish(learner: Learner, checkpoints: Checkpoints) -> None:
    """Export the policy and see the last checkpoint on record."""
    with phase(learner, "checkpoint"):
        learner.export(Path(learner.config.cluster.run_dir) / "policy")
        checkpoints.close()


@contextmanager
def phase(learner: Learner, name: str) -> Iterator[None]:
    """Say what this rank does, and end the process where it never comes out of it."""
    set_phase(learner.config.cluster.run_dir, f"learner-{learner.rank}", name)
    timed = _in_time(learner.config, learner.rank, name, "phase_deadline_s")
    with timed, record_function(name):
        yield


@contextmanager
def _in_time(config: RunConfig, rank: int, phase: str, setting: str) -> Iterator[None]:
    """End this process, and say so in events.jsonl, where the body takes longer than a setting."""
    seconds: float = getattr(config.cluster.learner, setting)
    facts = {
        "rank": rank,
        "phase": phase,
        "seconds": seconds,
        "setting": f"cluster.learner.{setting}",
    }
    tell = functools.partial(record, config.cluster.run_dir, "rank_stuck", **facts)
    with watched(seconds, f"{phase} of learner-{rank}", tell):
        yield


def _open_session(job: OnlineJob, learner: Learner, attempt: int) -> tuple[Session, Publisher]:
    """This attempt's line to the collector, and its way to send weights."""
    config = job.config

    def sync_newcomers() -> None:
        with phase(learner, "sync"):
            publisher.publish(learner.state.version, joining=True)

    session = Session(
        config, job.collector, attempt, learner.rank, learner.world_size, sync_newcomers
    )
    publisher = Publisher(learner, LiveRoster(session.client), job.probes, attempt)
    return session, publisher


def _answer(job: OnlineJob, session: Session, name: str) -> None:
    """Let the policy answer the held-out prompts, `before` it learns only once; a collective."""
    path = Path(job.config.cluster.run_dir) / f"{name}.json"
    if name == "before" and session.is_written(path):
        return
    replies = session.answers(name, job.held_out)
    if replies is not None:
        replace_text(path, json.dumps([asdict(reply) for reply in replies]))


def update(
    learner: Learner, step: int, experiences: Sequence[Experience]
) -> tuple[Metrics, pa.Table]:
    """One learner step by the method's kind of loss; what happened, and the experience as rows.

    An error carries the samples of this rank's share.
    """
    try:
        return _update(learner, step, experiences)
    except Exception as error:
        with_batch(error, rollout_rows(r for group in experiences for r in group.rollouts))
        raise


def _update(
    learner: Learner, step: int, experiences: Sequence[Experience]
) -> tuple[Metrics, pa.Table]:
    if learner.config.algorithm.loss.name is not None:
        metrics, batch, found = update_preference(learner, experiences)
        old_logprobs, advantages, scores = found.logprobs, None, found.scores
    else:
        metrics, batch, targets = update_policy(learner, experiences)
        old_logprobs, advantages = targets.old_logprobs, targets.advantages
        scores = targets.scores
    _check_finite(metrics, step)
    table = experience_table(
        step, experiences, batch, old_logprobs=old_logprobs, advantages=advantages, scores=scores
    )
    return metrics, table


def _check_finite(metrics: Metrics, step: int) -> None:
    """Raise Unrecoverable where a loss is no number any more."""
    wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
    if losses := [name for name in wrong if name.startswith("loss/")]:
        raise Unrecoverable(
            f"{losses[0]} is {metrics[losses[0]]} at step {step}: the run would learn nothing "
            "more; lower algorithm.optimizer.learning_rate, then go on with --resume"
        )


def _move_reference(learner: Learner, job: OnlineJob, session: Session, step: int) -> None:
    """Make a new reference of the policy, and start the optimizer anew where an iteration ends."""
    config = job.config
    exported = reference_folder(config, step)
    learner.export(exported)
    if learner.rank == 0:
        if config.model.reference_update == "ema":
            mix_folders(exported, latest_reference(config, step - 1), config.model.reference_decay)
        session.move_reference(str(exported), step)
    if config.model.reference_update == "reset":
        learner.forget_moments()


def _staleness(learner: Learner, experiences: Sequence[Experience], step: int) -> Metrics:
    """Learner versions between a reply's oldest token and the policy it was used on."""
    ages = [
        age
        for experience in experiences
        for rollout in experience.rollouts
        if (age := rollout.staleness(step)) is not None
    ]
    algorithm = learner.config.algorithm
    oldest = algorithm.max_staleness + algorithm.max_lateness
    counts = torch.bincount(torch.tensor(ages, dtype=torch.long), minlength=oldest + 1)
    counts = learner.reduce(counts[: oldest + 1].double())  # the bound holds for every reply
    total = float(counts.sum())
    return {
        "staleness/mean": float(counts @ torch.arange(oldest + 1).double()) / max(total, 1.0),
        "staleness/max": float(learner.maximum(max(ages, default=0))),
        **{f"staleness/replies/{age}": float(count) for age, count in enumerate(counts)},
    }


@_naming_full_disks
def learn_offline(job: OfflineJob) -> None:
    """The learner of SFT and reward-model training."""
    config = job.config
    learner, checkpoints = _start(config, job.pad_token_id)
    log = MetricsLog(config, learner)
    task = objective(learner)
    held_out = job.validation[learner.rank :: learner.world_size] or job.validation[:1]
    num_steps = config.algorithm.num_steps
    metrics: Metrics = {}
    steps = range(learner.state.version + 1, num_steps + 1)
    for step in profiled(config, learner.rank, steps):
        started = time.monotonic()
        rows = offline_rows(config, step, len(job.train))[learner.rank :: learner.world_size]
        with phase(learner, "update"):
            metrics = task.train([job.train[row] for row in rows])
            if step == 1 or step % config.algorithm.validation_interval == 0 or step == num_steps:
                metrics |= task.validate(held_out)
        _check_finite(metrics, step)
        metrics["time/train"] = time.monotonic() - started
        with phase(learner, "checkpoint"):
            metrics |= checkpoints.copy(step)
            log.write(step, metrics, started)
            checkpoints.upload()
    if not metrics:  # all steps were taken before, and the model was not written
        metrics = task.validate(held_out)
    bias = metrics.get("validation/chosen_score")
    if bias is not None:
        # Rewards start near 0 under the policy that wrote the better replies (arXiv 2403.17031).
        learner.set_reward_bias(bias)
    _finish(learner, checkpoints)


def offline_rows(config: RunConfig, step: int, num_rows: int) -> list[int]:
    """Rows of one step: every epoch is a new permutation, and an epoch may end inside a step."""
    per_step = config.data.prompts_per_step
    rows: list[int] = []
    position = (step - 1) * per_step
    while len(rows) < per_step:
        epoch, start = divmod(position, num_rows)
        order = list(range(num_rows))
        Random(f"{config.data.seed}-{epoch}").shuffle(order)
        part = order[start : start + per_step - len(rows)]
        rows += part
        position += len(part)
    return rows


class MetricsLog:
    """metrics.jsonl: one object per learner step, written by rank 0."""

    def __init__(self, config: RunConfig, learner: Learner) -> None:
        self.path = Path(config.cluster.run_dir) / "metrics.jsonl"
        self.is_writer = learner.rank == 0
        self.learner = learner
        self.is_synchronous = config.algorithm.max_staleness == 0
        self.previous_s = 0.0
        self.started = time.monotonic()
        if self.is_writer:
            self._rewind(learner.state.version)

    def _rewind(self, step: int) -> None:
        """Forget steps after the checkpoint: they are run again."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        self.previous_s = json.loads(kept[-1])["time_s"] if kept else 0.0
        replace_text(self.path, "".join(f"{line}\n" for line in kept))

    def write(self, step: int, metrics: Metrics, step_started: float) -> None:
        """Append a step; adds the clock, the idle share and the speed."""
        if not self.is_writer:
            return
        now = time.monotonic()
        metrics["time/step"] = now - step_started
        metrics["tokens_per_s"] = metrics["num_tokens"] / metrics["time/step"]
        if self.is_synchronous and "time/sample" in metrics:
            phases = ("time/sample", "time/score", "time/train", "time/sync", "time/checkpoint")
            metrics["time/idle"] = max(
                0.0, metrics["time/step"] - sum(metrics.get(p, 0.0) for p in phases)
            )
        elif "time/wait" in metrics:
            metrics["time/idle"] = metrics["time/wait"]
        metrics["learner/world_size"] = float(self.learner.world_size)
        record = {
            "step": step,
            "policy_version": self.learner.state.version,
            "unix_time": unix_now(),
            "time_s": round(self.previous_s + now - self.started, 3),
            **{name: float(f"{value:.7g}") for name, value in metrics.items()},
        }
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
