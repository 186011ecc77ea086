"""What becomes of a learner's worker group: started again after a failure, grown, or given up.

Ray Train asks two policies. Its own would retry what cannot succeed, and count cores that engines
hold or that carry other labels; these do not:

    a rank fails ─▶ RestartPolicy ─▶ Unrecoverable: the run ends │ else: start again
    no group, or once in a while ─▶ RoomPolicy ─▶ as many ranks as there is room for

The controller of Ray Train runs them, so this file loads neither torch nor vLLM.
"""

import contextlib
import logging
import math
import socket
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray._private.state import available_resources_per_node, state
from ray.exceptions import RayActorError, RayError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from cluster.errors import Unrecoverable, root_cause
from cluster.events import FILE, read_events, record
from configs.redaction import redact_text

logger = logging.getLogger(__name__)

FINAL = (Unrecoverable, FloatingPointError, ValueError)
"""What another try would meet again: Unrecoverable, spoilt weights, wrong input."""
SAME = 3
"""An error that so many attempts in a row ended with, none of which got further, will not go."""
SETTLE_S = 5.0
"""Nodes that died, and what they held, are known about after a while."""
ANSWER_S = 2.0
"""What a node takes a connection within."""
NODE_ID = "ray.io/node-id"
"""Ray's own label of a node."""
END_S = 30.0
"""How long ranks may take to be ended."""
PATIENCE_S = 60.0
"""Then a worker group of the least size is asked for, whether or not room for it is seen."""


class Preempted(RuntimeError):
    """A node of the learner is about to go away, and all that was learned is saved."""


class Trainer(TorchTrainer):
    """A worker group that lives by the policies below."""

    def __init__(self, run_dir: str, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.run_dir = run_dir
        self._controller: Any = None

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        # Ray Train 2.60 has no public way to choose policies, nor to end what it has started.
        parts["failure_policy"] = RestartPolicy(self.run_config.failure_config, self.run_dir)
        if self.scaling_config.elasticity_enabled:
            parts["scaling_policy"] = RoomPolicy(self.scaling_config, self.run_dir)
        here = {NODE_ID: ray.get_runtime_context().get_node_id()}
        controller: Any = ray.remote(TrainController)
        self._controller = controller.options(
            num_cpus=0, label_selector=here, runtime_env={"env_vars": get_env_vars_to_propagate()}
        ).remote(**parts)
        ray.get(self._controller.run.remote())  # as long as training takes
        return ray.get(self._controller.get_result.remote())

    def end(self) -> None:
        """End all ranks, however far they are; whoever waits in `fit` gets an error."""
        if self._controller is None or not ray.is_initialized():
            return
        with contextlib.suppress(RayError):
            ray.get(self._controller.abort.remote(), timeout=END_S)
        ray.kill(self._controller)


def final_cause(error: BaseException) -> BaseException | None:
    """The failure behind an error that no other attempt would get past, if there is one.

    Of the ranks' failures an Unrecoverable one counts whatever befell the others; wrong input does
    only where no rank died, since the others stumble over all kinds of things then.
    """
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, Unrecoverable | FloatingPointError):
            return cause
    if any(isinstance(cause, RayActorError) for cause in causes):
        return None
    return next((cause for cause in causes if isinstance(cause, FINAL)), None)


def _causes(error: BaseException, depth: int = 0) -> list[BaseException]:
    """An error and all behind it, the innermost first, since outer ones are made to look alike."""
    inner = list((getattr(error, "worker_failures", None) or {}).values())
    inner += [getattr(error, "health_check_failure", None), getattr(error, "cause", None)]
    inner.append(error.__cause__)
    found = [cause for one in inner if isinstance(one, BaseException) and depth < 10
             for cause in _causes(one, depth + 1)]  # fmt: skip
    return [*found, error]


class RestartPolicy(DefaultFailurePolicy):
    """Start again after a failure, `max_failures` times in a row without a new checkpoint."""

    def __init__(self, failure_config: Any, run_dir: str) -> None:
        super().__init__(failure_config)
        self.run_dir = run_dir
        self._num_saved = 0
        self._last, self._same = "", 0

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """RAISE or RETRY; told in events.jsonl."""
        error = training_failed_error
        text = root_cause(error)[:500]
        self._count(error, text)
        final = final_cause(error)
        if any(isinstance(cause, Preempted) for cause in _causes(error)):
            decision = FailureDecision.RETRY
        elif final is not None or self._same >= SAME:
            decision = FailureDecision.RAISE
        else:
            decision = super().make_decision(error)
        ranks = sorted(getattr(error, "worker_failures", None) or {})
        record(
            self.run_dir,
            "learner_failure",
            error=redact_text(root_cause(final)[:500] if final else text),
            ranks=ranks,
            restarted=decision == FailureDecision.RETRY,
        )
        return decision

    def _count(self, error: TrainingFailedError, text: str) -> None:
        """Failures that came after progress are the first of a new row."""
        num_saved = sum(event["kind"] == "checkpoint_saved" for event in read_events(self.run_dir))
        if num_saved > self._num_saved:
            self._num_saved = num_saved
            self._worker_group_failures = self._controller_failures = 0
            self._same = 0
        died = any(isinstance(cause, RayActorError) for cause in _causes(error))
        is_same = isinstance(error, WorkerGroupError) and not died and text == self._last
        self._same = self._same + 1 if is_same else 1
        self._last = text


class RoomPolicy(ElasticScalingPolicy):
    """As many ranks, from `min_workers` on, as labelled nodes that stay have room for.

    A group that runs is resized only once a checkpoint was saved after the room was seen, so that
    nothing is learned twice.
    """

    def __init__(self, scaling_config: Any, run_dir: str) -> None:
        super().__init__(scaling_config)
        self.run_dir = Path(run_dir)
        self._own: Counter[str] = Counter()
        """Node id -> ranks of the last group there, whose place is not free, but ours."""
        self._waiting_since: float | None = None
        self._pending: tuple[ResizeDecision, int] | None = None
        self._events_size = -1

    def _get_reserved_resources(self) -> Any:
        return {}

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        free = available_resources_per_node()
        leaving = state.get_draining_nodes()
        needed = {k: v for k, v in self.scaling_config._resources_per_worker_not_none.items() if v}
        wanted: Any = self.scaling_config.label_selector or {}
        total = 0
        for node in ray.nodes():
            name = node["NodeID"]
            if not node["Alive"] or name in leaving or not matches(wanted, node["Labels"] or {}):
                continue
            if self._waiting_since is not None and not _answers(node):
                continue
            room = [(free.get(name, {}).get(k, 0.0) / v) + 1e-6 for k, v in needed.items()]
            total += self._own[name] + (math.floor(min(room)) if room else 0)
        return min(total, self.scaling_config.max_workers)

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Wait until the cluster has settled, then take what room there is."""
        now = time.monotonic()
        self._pending = None
        if self._waiting_since is None:
            self._waiting_since = now
        waited = now - self._waiting_since
        self._maybe_send_resource_request()
        possible = self._count_possible_workers({})
        least, most = self.scaling_config.min_workers, self.scaling_config.max_workers
        if possible < most and waited < SETTLE_S:
            return NoopDecision()
        if possible < least and waited < PATIENCE_S:
            return NoopDecision()
        self._waiting_since = None
        self._own.clear()
        return self._get_resize_decision(max(possible, least))

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Look every `resize_interval_s` whether another size is possible."""
        self._own = Counter(worker.metadata.node_id for worker in worker_group_state.workers)
        if self._pending is None:
            decision = super().make_decision_for_running_worker_group(
                worker_group_state, worker_group_status
            )
            if isinstance(decision, ResizeDecision):
                self._pending = (decision, self._num_saved())
            return NoopDecision()
        if not self._has_news():
            return NoopDecision()
        wanted, num_saved = self._pending
        if self._num_saved() == num_saved:
            return NoopDecision()
        self._pending = None
        possible = self._count_possible_workers({})
        if possible != wanted.num_workers:  # it changed again: look once more in a while
            return NoopDecision()
        self._own.clear()
        facts = {"before": worker_group_state.num_workers, "after": possible}
        record(self.run_dir, "learner_resized", **facts)
        return wanted

    def _has_news(self) -> bool:
        path = self.run_dir / FILE
        size = path.stat().st_size if path.exists() else 0
        has_grown, self._events_size = size != self._events_size, size
        return has_grown

    def _num_saved(self) -> int:
        return sum(event["kind"] == "checkpoint_saved" for event in read_events(self.run_dir))


def _answers(node: Mapping[str, Any]) -> bool:
    """Whether a node is there at all: Ray takes a dead one for alive for up to a minute."""
    address = (node["NodeManagerAddress"], node["NodeManagerPort"])
    try:
        socket.create_connection(address, timeout=ANSWER_S).close()
    except OSError:
        return False
    return True


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a node's labels fit a Ray label selector: `x`, `!x`, `in(x,y)` or `!in(x,y)`."""
    for key, wanted in selector.items():
        text = wanted.removeprefix("!")
        values = text[3:-1].split(",") if text.startswith("in(") else [text]
        is_in = labels.get(key) in {value.strip() for value in values}
        if is_in == wanted.startswith("!"):
            return False
    return True
