"""Publishing weights: the control calls to all engines, and the proof that they took them over.

The client below is what vLLM's trainer engines drive. It differs from the library's own Ray client
in three ways: every engine gets its own rank offset (the library sends all of them the same, and
independent engines collide), the policy version is set, and all calls have a deadline.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

from actors.learner import Learner
from actors.weight_sync import ZeroSource, open_sender, probe_gap
from cluster.fleet import EngineHandle, transport_of
from cluster.runtime import free_port
from rl.fingerprints import differing, tensor_group
from rl.types import Metrics

logger = logging.getLogger(__name__)

DEFAULT_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.25}
"""Nats; in bfloat16 engine and learner round differently in every layer."""

UPDATE = {"begin": "pause", "receive": "receive weights", "install": "install weights"}
"""Parts of an update, and what an engine that is late did not do."""
PHASES = {"join": "join the transfer group", **UPDATE}


class EngineClient:
    """The four calls of vLLM's `VLLMWeightSyncClient`, to several independent engines at once."""

    def __init__(self, engines: Sequence[EngineHandle], deadline_s: float) -> None:
        self.engines = list(engines)
        self.deadline_s = deadline_s
        self.version = 0
        self.pause_s = 0.0
        self.phase_s: dict[str, float] = {}
        """How long the engines took over each part of the last update."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Let every engine join the group, each behind the workers of those before it."""
        offset, calls = 1, []
        for engine in self.engines:
            info = dict(init_info)
            if "rank_offset" in info:
                info["rank_offset"] = offset
            calls.append(engine.actor.init_transfer.remote(info))
            offset += engine.num_workers
        self._wait(calls, "join")

    def start_weight_update(self) -> None:
        """Pause all engines, keeping what they have in flight."""
        self._wait([engine.actor.begin_update.remote() for engine in self.engines], "begin")

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Let all engines receive; runs beside the broadcast."""
        shared = ray.put(update_info)
        calls = [engine.actor.update_weights.remote(shared) for engine in self.engines]
        self._wait(calls, "receive")

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Install the weights under the version set before, and let the engines go on."""
        calls = [engine.actor.end_update.remote(self.version) for engine in self.engines]
        self.pause_s = max(self._wait(calls, "install"))

    def _wait(self, calls: list[Any], phase: str) -> list[Any]:
        started = time.monotonic()
        try:
            answers = ray.get(calls, timeout=self.deadline_s)
        except GetTimeoutError as error:
            _, late = ray.wait(calls, num_returns=len(calls), timeout=0)
            names = [self.engines[calls.index(call)].name for call in late]
            raise RuntimeError(
                f"{', '.join(names)} did not {PHASES[phase]} within {self.deadline_s:.0f} s "
                f"(phase: sync); see logs/{names[0]}.log, or raise cluster.sync.deadline_s"
            ) from error
        self.phase_s[phase] = time.monotonic() - started
        return answers


class Publisher:
    """One per learner rank; rank 0 talks to the engines, the others join in the gathering."""

    def __init__(
        self,
        learner: Learner,
        engines: Sequence[EngineHandle],
        probe_sequences: Sequence[Sequence[int]],
    ) -> None:
        self.learner = learner
        self.engines = list(engines)
        self.probes = [list(sequence) for sequence in probe_sequences]
        self.settings = learner.config.cluster.sync
        self.client = EngineClient(engines, self.settings.deadline_s)
        self.source = ZeroSource(learner)

    def connect(self) -> None:
        """Wait for the engines and form the transfer group; a collective."""
        config = self.learner.config
        if self.learner.rank == 0:
            starting = [engine.actor.start.remote() for engine in self.engines]
            ray.get(starting, timeout=config.cluster.rollout.start_deadline_s)
        self.sender = open_sender(
            self.learner,
            self.source,
            self.client,
            transport=transport_of(config),
            address=(ray.util.get_node_ip_address(), free_port()),
            num_engine_workers=sum(engine.num_workers for engine in self.engines),
        )

    def publish(self, version: int) -> Metrics:
        """Send the present weights as `version`, then probe every engine; a collective."""
        started = time.monotonic()
        self.client.version = version
        self.sender.send_weights()
        sent = time.monotonic()
        gap = self.probe()
        return {
            "time/sync": time.monotonic() - started,
            "sync/transfer_s": sent - started,
            "sync/pause_s": self.client.pause_s,
            **{f"sync/{phase}_s": self.client.phase_s.get(phase, 0.0) for phase in UPDATE},
            "probe/gap": gap,
        }

    def probe(self) -> float:
        """Largest log-prob difference, in nats, between the learner and any engine; a collective.

        Raises RuntimeError where it exceeds the tolerance, naming the engine and the tensors.
        """
        is_asking = self.learner.rank == 0
        calls = [e.actor.probe.remote(self.probes) for e in self.engines] if is_asking else []
        own = self.learner.probe(self.probes)
        if not is_asking:
            return 0.0
        answers = ray.get(calls, timeout=self.settings.deadline_s)
        gaps = [probe_gap(own, answer) for answer in answers]
        tolerance = (
            self.settings.probe_tolerance or DEFAULT_TOLERANCE[self.learner.config.model.dtype]
        )
        for engine, (gap, place) in zip(self.engines, gaps, strict=True):
            if not gap <= tolerance:
                raise RuntimeError(self._accuse(engine, gap, tolerance, place))
        return max(gap for gap, _ in gaps)

    def _accuse(
        self, engine: EngineHandle, gap: float, tolerance: float, place: tuple[int, int]
    ) -> str:
        received: Any = ray.get(
            engine.actor.received_fingerprints.remote(), timeout=self.settings.deadline_s
        )
        wrong = differing(self.source.sent, received)
        groups = list(dict.fromkeys(tensor_group(name) for name in wrong))
        if wrong:
            what = f"tensor group {', '.join(groups[:3])} (first tensor: {wrong[0]})"
        else:
            what = "all tensors arrived intact, so the engine's own copy differs after loading"
        return (
            f"{engine.name} differs from the learner by {gap:.2g} nats at token {place[1]} of "
            f"probe {place[0]} after sync of version {self.client.version} "
            f"(tolerance {tolerance:.2g}): {what}"
        )
