"""Driving Ray Train: fit in a thread, watch metrics.jsonl, stop on silence, failure or Ctrl-C."""

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig

from cluster.checkpoints.store import store_of
from cluster.deadlines import log_end
from cluster.elastic import Trainer, final_cause
from cluster.learner_group import BoundStoreConfig
from cluster.progress import RunProgress
from cluster.runtime import role_env
from cluster.tail import MetricsTail
from configs.schema import RunConfig as Config

NEVER_STARTED = (
    "no rank of it has started: is there room for cluster.learner.num_workers ranks on nodes with "
    "cluster.learner.labels, or do other roles hold it?"
)
SAID_AFTER_S = 120.0
"""No rank has started for so long: that is worth a line."""
GROUP_START_S = 300
"""Longest wait for the processes of all ranks, once there is room for them."""
END_S = 30.0
"""How long a learner that is given up may take to end."""
HEAPS = 2
"""Of a learner's process, in place of eight a core: one thread at a time allocates much."""

logger = logging.getLogger(__name__)

Failure = Callable[[], BaseException | None]
"""What makes going on with a run useless, if anything does."""


def never() -> None:
    """Of a run that nothing ends but itself."""


def trainer(config: Config, function: Callable[[dict[str, Any]], None], job: Any) -> Trainer:
    """A Ray Train worker group, which goes on from the run's newest checkpoint.

    Ray Train itself is told of no checkpoint: the ranks find theirs in the store.
    """
    placement, cluster = config.cluster.learner, config.cluster
    # Ray Train hands it on to its controller; 60 s are too few on a busy machine.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(GROUP_START_S))
    store_of(config)  # where that is, is noted before any rank asks
    resources = {"CPU": placement.cpus_per_worker}
    if placement.gpus_per_worker:
        resources["GPU"] = placement.gpus_per_worker
    num_workers: Any = placement.num_workers
    if placement.min_workers is not None:
        num_workers = (placement.min_workers, placement.num_workers)
    return Trainer(
        cluster.run_dir,
        function,
        train_loop_config={"job": job},
        torch_config=BoundStoreConfig(timeout_s=math.ceil(placement.phase_deadline_s)),
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            elastic_resize_monitor_interval_s=placement.resize_interval_s,
            label_selector=placement.labels or None,
            use_gpu=placement.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            storage_path=str(Path(cluster.run_dir).resolve()),
            name="ray_train",
            failure_config=FailureConfig(max_failures=placement.max_failures),
            worker_runtime_env=_learner_env(placement.cpus_per_worker, cluster.device),
        ),
    )


def _learner_env(cpus: float, device: str) -> dict[str, Any]:
    """Environment of a rank: what each role has, and few heaps.

    glibc gives threads heaps of their own, up to eight a core. Threads that a step starts land now
    in this one, now in that, and each heap keeps the most it ever held.
    """
    environment = role_env(cpus, device)
    environment["env_vars"]["MALLOC_ARENA_MAX"] = str(HEAPS)
    return environment


def fit(
    config: Config,
    made: Trainer,
    progress: RunProgress,
    failure: Failure = never,
) -> None:
    """Run until the learner has finished; raises its error, or RuntimeError on long silence.

    What `failure` returns, asked again and again, ends the run as well.
    """
    errors: list[BaseException] = []
    # Not asked of the thread: one whose `join` Ctrl-C interrupts says that it has ended (3.11).
    ended = threading.Event()

    def target() -> None:
        try:
            made.fit()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            errors.append(error)
        finally:
            ended.set()

    threading.Thread(target=target, daemon=True, name="ray-train").start()
    try:
        _follow(config, ended, progress, failure)
    except BaseException:
        _end(made, ended)
        raise
    if errors:
        raise final_cause(errors[0]) or errors[0]


def _end(made: Trainer, ended: threading.Event) -> None:
    """End all ranks, and the thread that waits for them.

    Ray ends the process, by a segmentation fault even, if it is shut down while a thread calls it.
    """
    until = time.monotonic() + END_S
    while not ended.is_set() and time.monotonic() < until:
        made.end()  # again where its controller was just about to be created
        ended.wait(1.0)
    if not ended.is_set():
        logger.warning("the learner did not end within %.0f s", END_S)


def _follow(
    config: Config,
    ended: threading.Event,
    progress: RunProgress,
    failure: Failure,
) -> None:
    tail, heard = MetricsTail(config.cluster.run_dir), time.monotonic()
    say_at: float | None = heard + SAID_AFTER_S
    while not ended.wait(0.2):
        for metrics in tail.read():
            heard = time.monotonic()
            progress.update(metrics)
        if say_at is not None and time.monotonic() > say_at:
            say_at = None
            if not log_end(config.cluster.run_dir, "learner-0"):
                logger.warning("the learner waits: %s", NEVER_STARTED)
        if (error := failure()) is not None:
            raise error
        if time.monotonic() - heard > config.cluster.learner_deadline_s:
            raise RuntimeError(
                f"the learner was silent for {config.cluster.learner_deadline_s:.0f} s (phase: "
                "train); raise cluster.learner_deadline_s if it needs longer"
                f"{log_end(config.cluster.run_dir, 'learner-0') or '; ' + NEVER_STARTED}"
            )
    for metrics in tail.read():
        progress.update(metrics)
