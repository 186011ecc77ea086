"""Publishing weights: the control calls to all engines, and the proof that they took them over.

The client below is what vLLM's trainer engines drive. It differs from the library's own Ray client
in three ways: every engine gets its own rank offset (the library sends all of them the same, and
independent engines collide), the policy version is set, and all calls have a deadline.

An engine that fails in a sync is given up: the others leave the broken group, form a new one and
get the weights again. Ranks other than 0 only take part in gathering, once per try.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray
import torch.distributed as dist

from actors.learner import Learner
from actors.weight_sync import ZeroSource, open_sender, probe_gap
from cluster.deadlines import log_end
from cluster.engines import EngineHandle, transport_of
from cluster.errors import Unrecoverable, last_line
from cluster.runtime import free_port
from configs.cluster import SyncConfig
from rl.fingerprints import differing, tensor_group
from rl.types import Metrics

logger = logging.getLogger(__name__)

DEFAULT_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.25}
"""Nats; in bfloat16 engine and learner round differently in every layer."""

UPDATE = {"begin": "pause", "receive": "receive weights", "install": "install weights"}
"""Parts of an update, and what an engine that is late did not do."""
PHASES = {"join": "join the transfer group", **UPDATE, "probe": "answer the probe"}
PING_S = 3.0
"""What an engine that is not to blame for a failed transfer answers within."""


class Roster(Protocol):
    """Who knows which engines there are."""

    def members(self, *, joining: bool) -> list[EngineHandle]:
        """Engines that can take weights; with `joining`, only those that have none yet."""
        ...

    def suspect(self, key: str, reason: str) -> None:
        """An engine failed in a sync and is left out from now on."""
        ...

    def synced(self, keys: Sequence[str]) -> None:
        """These engines have the weights and were probed."""
        ...


class FixedRoster:
    """Engines that nobody replaces: the first that fails ends the sync."""

    def __init__(self, engines: Sequence[EngineHandle]) -> None:
        self.engines = list(engines)

    def members(self, *, joining: bool) -> list[EngineHandle]:
        """All of them, once they have loaded."""
        ray.get([engine.actor.start.remote() for engine in self.engines], timeout=600)
        return [] if joining else self.engines

    def suspect(self, key: str, reason: str) -> None:
        """Raise what is wrong with it."""
        raise RuntimeError(reason)

    def synced(self, keys: Sequence[str]) -> None:
        """Nobody needs to know."""


class EnginesFailed(RuntimeError):
    """Some engines did not do their part; `reasons` by key."""

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__("; ".join(reasons.values()))
        self.reasons = reasons


class EngineClient:
    """The four calls of vLLM's `VLLMWeightSyncClient`, to several independent engines at once."""

    def __init__(
        self, engines: Sequence[EngineHandle], settings: SyncConfig, attempt: int, run_dir: str
    ) -> None:
        self.engines = list(engines)
        self.settings = settings
        self.attempt = attempt
        self.run_dir = run_dir
        self.is_over = False
        """Whether the transfer was given up, so that nobody waits for it any more."""
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
            calls.append(engine.actor.init_transfer.remote(info, self.attempt))
            offset += engine.num_workers
        self.wait(calls, "join")

    def start_weight_update(self) -> None:
        """Pause all engines, keeping what they have in flight."""
        self.wait([engine.actor.begin_update.remote() for engine in self.engines], "begin")

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Let all engines receive; runs beside the broadcast, whose parts have their own limit."""
        shared = ray.put(update_info)
        calls = [engine.actor.update_weights.remote(shared) for engine in self.engines]
        self.wait(calls, "receive")

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Install the weights under the version set before, and let the engines go on."""
        calls = [engine.actor.end_update.remote(self.version) for engine in self.engines]
        self.pause_s = max(self.wait(calls, "install"), default=0.0)

    def wait(self, calls: list[Any], phase: str) -> list[Any]:
        """All answers; raises EnginesFailed with what each other engine did wrong."""
        started = time.monotonic()
        # Receiving takes as long as there is to send, and each of its buffers has a limit.
        setting = "deadline_s" if phase == "receive" else "stall_s"
        deadline_s: float = getattr(self.settings, setting)
        slow = list(calls)
        slow = self._still_slow(slow, started + deadline_s)
        if slow and phase == "probe":
            # The sequences in flight are computed anew after a sync. An engine that shows a sign of
            # life meanwhile is not to blame for that.
            silent = self.silent()
            busy = [call for engine, call in zip(self.engines, calls, strict=True)
                    if call in slow and engine.key not in silent]  # fmt: skip
            setting, deadline_s = "deadline_s", self.settings.deadline_s
            done = set(busy) - set(self._still_slow(busy, started + deadline_s))
            slow = [call for call in slow if call not in done]
        answers, reasons = [], {}
        for engine, call in zip(self.engines, calls, strict=True):
            if call in slow:
                reasons[engine.key] = (
                    f"{engine.name} did not {PHASES[phase]} within {deadline_s:.0f} s (phase: "
                    f"sync); raise cluster.sync.{setting} if it needs longer"
                    f"{log_end(self.run_dir, engine.name)}"
                )
                continue
            try:
                answers.append(ray.get(call))
            except Exception as error:  # noqa: BLE001 - whatever it is, the engine failed
                reasons[engine.key] = (
                    f"{engine.name} did not {PHASES[phase]} (phase: sync): {last_line(error)}"
                )
        self.phase_s[phase] = time.monotonic() - started
        if reasons:
            raise EnginesFailed(reasons)
        return answers

    def _still_slow(self, calls: list[Any], end: float) -> list[Any]:
        """Calls that have not ended by then, or when the transfer is given up."""
        slow = list(calls)
        while slow and (left := end - time.monotonic()) > 0 and not self.is_over:
            _, slow = ray.wait(slow, num_returns=len(slow), timeout=min(1.0, left))
        return slow

    def silent(self) -> dict[str, str]:
        """Engines that show no sign of life at all, and why that is said of each."""
        calls = {engine.key: engine.actor.ping.remote() for engine in self.engines}
        _, slow = ray.wait(list(calls.values()), num_returns=len(calls), timeout=PING_S)
        reasons = {}
        for engine in self.engines:
            call = calls[engine.key]
            if call in slow:
                reasons[engine.key] = (
                    f"{engine.name} is stuck (phase: sync){log_end(self.run_dir, engine.name)}"
                )
                continue
            try:
                ray.get(call)
            except Exception as error:  # noqa: BLE001 - whatever it is, the engine failed
                reasons[engine.key] = f"{engine.name} is gone (phase: sync): {last_line(error)}"
        return reasons

    def leave(self) -> None:
        """Let every engine leave the group; who cannot is found out when it should join again."""
        calls = [engine.actor.leave_transfer.remote() for engine in self.engines]
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=PING_S)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all ranks need to know of a try to send."""

    is_new: bool
    """Whether the transfer group has yet to be formed."""
    address: tuple[str, int]
    num_workers: int
    """Of all engines together; 0 where there is nobody to send to."""


class Publisher:
    """One per learner rank; rank 0 talks to the engines, the others join in the gathering."""

    def __init__(
        self,
        learner: Learner,
        roster: Roster,
        probe_sequences: Sequence[Sequence[int]],
        attempt: int = 0,
    ) -> None:
        self.learner = learner
        self.roster = roster
        self.probes = [list(sequence) for sequence in probe_sequences]
        self.settings = learner.config.cluster.sync
        self.attempt = attempt
        self.run_dir = learner.config.cluster.run_dir
        self.client = EngineClient([], self.settings, attempt, self.run_dir)
        self.source = ZeroSource(learner)
        self.sender: Any = None
        self._failed: set[str] = set()

    @property
    def _is_asking(self) -> bool:
        return self.learner.rank == 0

    def follow(self, learner: Learner) -> None:
        """Send the weights of another learner from now on, to the same engines."""
        self.learner, self.source = learner, ZeroSource(learner)
        if self.sender is not None:
            self.sender.source = self.source

    def publish(self, version: int, *, joining: bool = False) -> Metrics:
        """Send the present weights as `version` and probe every engine; a collective.

        With `joining`, only to engines that have no weights yet. Engines that fail are given up and
        reported to the roster; raises RuntimeError once `cluster.sync.attempts` tries have failed,
        and Unrecoverable where an engine and the learner disagree on log-probs.
        """
        started = time.monotonic()
        reason = ""
        for _ in range(self.settings.attempts):
            reason = self._shared(self._try(version, joining))
            if not reason:
                break
            logger.warning("sync of version %d failed: %s", version, reason)
        else:
            raise RuntimeError(
                f"version {version} reached no set of engines in {self.settings.attempts} tries; "
                f"the last: {reason}"
            )
        sent = time.monotonic()
        gap = self.probe()
        if self._is_asking:
            self.roster.synced([engine.key for engine in self.client.engines])
        return {
            "time/sync": time.monotonic() - started,
            "sync/transfer_s": sent - started,
            "sync/pause_s": self.client.pause_s,
            **{f"sync/{phase}_s": self.client.phase_s.get(phase, 0.0) for phase in UPDATE},
            "sync/engines": float(len(self.client.engines)),
            "probe/gap": gap,
            "probe/tolerance": self.tolerance,
        }

    def _try(self, version: int, joining: bool) -> str:
        """Send once, on all ranks; on rank 0, why it failed, or nothing."""
        plan = self._shared(self._plan(joining) if self._is_asking else None)
        if not plan.num_workers:
            logger.warning("no engine to send version %d to", version)
            return ""
        self.source.forget_pass()
        try:
            if plan.is_new or self.sender is None:
                self.sender = open_sender(
                    self.learner,
                    self.source,
                    self.client,
                    transport=transport_of(self.learner.config),
                    address=plan.address,
                    num_engine_workers=plan.num_workers,
                )
            self.client.version = version
            self.sender.send_weights()
        except Exception as error:
            if not self._is_asking:
                raise
            self._give_up(error)
            return last_line(error)
        finally:
            if self._is_asking:
                self.source.finish_pass()
        return ""

    def _plan(self, joining: bool) -> "Plan":
        """Who takes part now, and whether their group has yet to be formed; on rank 0."""
        found = self.roster.members(joining=joining)
        members = [engine for engine in found if engine.key not in self._failed]
        is_new = self.sender is None or members != self.client.engines
        if is_new:
            if self.sender is not None:
                self.client.leave()
                self.sender.shutdown()
                self.sender = None
            self.client = EngineClient(members, self.settings, self.attempt, self.run_dir)
        return Plan(
            is_new=is_new,
            address=(ray.util.get_node_ip_address(), free_port()),
            num_workers=sum(engine.num_workers for engine in members),
        )

    def _give_up(self, error: Exception) -> None:
        """Find out who is to blame; the others will form a new group."""
        self.client.is_over = True
        if self.sender is not None:
            self.sender.shutdown()
            self.sender = None
        reasons = self.client.silent()
        if not reasons and isinstance(error, EnginesFailed):
            reasons = error.reasons
        elif not reasons:
            logger.warning("all engines answer after a failed transfer", exc_info=error)
        for key, reason in reasons.items():
            self._failed.add(key)
            self.roster.suspect(key, reason)
        self.client.engines = [e for e in self.client.engines if e.key not in reasons]
        self.client.leave()

    def probe(self) -> float:
        """Largest log-prob difference, in nats, between the learner and any engine; a collective.

        Raises Unrecoverable where it exceeds the tolerance, naming the engine and the tensors.
        """
        asked = list(self.client.engines) if self._is_asking else []
        calls = [engine.actor.probe.remote(self.probes) for engine in asked]
        own = self.learner.probe(self.probes)
        if not asked:
            return 0.0
        answers = self._answers(calls)
        gaps = {engine.key: probe_gap(own, answer) for engine, answer in answers}
        for engine, _ in answers:
            gap, place = gaps[engine.key]
            if not gap <= self.tolerance:
                raise Unrecoverable(self._accuse(engine, gap, self.tolerance, place))
        return max((gap for gap, _ in gaps.values()), default=0.0)

    @property
    def tolerance(self) -> float:
        """Nats by which an engine's log-probs may differ from the learner's."""
        default = DEFAULT_TOLERANCE[self.learner.config.model.dtype]
        return self.settings.probe_tolerance or default

    def _answers(self, calls: list[Any]) -> list[tuple[EngineHandle, Any]]:
        """Each engine that answered the probe with its answer; the others are given up."""
        engines = list(self.client.engines)
        try:
            return list(zip(engines, self.client.wait(calls, "probe"), strict=True))
        except EnginesFailed as error:
            for key, reason in error.reasons.items():
                self._failed.add(key)
                self.roster.suspect(key, reason)
            left = [
                (engine, call)
                for engine, call in zip(engines, calls, strict=True)
                if engine.key not in error.reasons
            ]
            self.client.engines = [engine for engine, _ in left]
            if self.sender is not None:  # its group has a member that is gone
                self.sender.shutdown()
                self.sender = None
            return [(engine, ray.get(call)) for engine, call in left]

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

    def _shared(self, value: Any) -> Any:
        """Rank 0's value, on all ranks."""
        if self.learner.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]
