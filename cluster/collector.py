"""The collector actor: which engines there are, and what the learner may take from the walk.

    supervisor ── set_up, admit, release, lost ─▶ membership ◀── members, synced ── learner
                                                    │ live engines
    learner ── begin, poll, take, commit, advance ─▶ walk

An engine is *joining* until the learner has given it weights, then *live*. The learner polls: a
batch is READY, it should SYNC engines that joined, or it should WAIT. The actor may be restarted at
any time and knows nothing then: the supervisor sets it up again, the learner begins again.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cluster.attempts import latest_attempt, refuse_older
from cluster.engines import EngineHandle
from cluster.errors import NotBegun
from cluster.evaluation import JudgedReply
from cluster.fleet import Fleet
from cluster.judges import start_judges
from cluster.ledger import Ledger, LedgerRow
from cluster.metrics.live import of_walk
from cluster.roles import Role
from cluster.walk import Walk
from configs.schema import RunConfig
from rl.data.stored import Item
from rl.types import Prompt

logger = logging.getLogger(__name__)

Verdict = Literal["READY", "SYNC", "WAIT"]

POLL_S = 2.0
"""Longest a poll waits before it says WAIT."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """What the supervisor needs to know of the collector."""

    is_set_up: bool
    live: tuple[str, ...] = ()
    """Keys of engines with weights."""
    suspects: tuple[tuple[str, str], ...] = ()
    """Key and reason of each engine that somebody takes for lost."""
    num_waiting: int = 0
    """Prompt groups that are asked for and not whole."""
    is_learner_waiting: bool = False
    """Whether the learner waits for replies at this moment."""


class Collector:
    """One Ray actor a run; holds no state that the run folder, or others, do not hold too."""

    def __init__(self) -> None:
        self.walk: Walk | None = None
        self.engines: dict[str, EngineHandle] = {}
        self._is_begun = False
        self._role: Role | None = None

    # ---- the supervisor's calls ------------------------------------------------------------

    async def set_up(self, config: RunConfig, items: Sequence[Item]) -> None:
        """Serve this run, with those judges of the last one that would be started again."""
        if self._role is not None:
            self._role.leave()
        self._role = Role(config.cluster.run_dir, "collector", self._facts)
        self._role.enter("start")
        idle = self.walk.judges.groups() if self.walk else []
        if self.walk:
            self.walk.stop()
        self.config = config
        self.engines = {}
        self._is_begun = False
        self._answers: dict[str, asyncio.Task[list[JudgedReply]]] = {}
        self._polled_at = 0.0
        self.attempt = latest_attempt(config.cluster.run_dir)
        self.fleet = Fleet(config)
        judges = start_judges(config)
        for group in judges.groups():
            group.adopt(idle, config.cluster.run_dir)
        for group in idle:
            group.end()
        reference_fleet = Fleet(config) if config.data.source == "policy+reference" else None
        self.walk = Walk(config, items, judges, self.fleet, reference_fleet, self._role.enter)

    def _facts(self) -> dict[str, float]:
        """For telemetry, from another thread."""
        return of_walk(self.walk) if self.walk is not None else {}

    async def ready(self) -> None:
        """Wait until every judge has loaded."""
        await self._walk().ready()

    def _walk(self) -> Walk:
        if self.walk is None:
            raise NotBegun("the collector was started anew and is not set up yet")
        return self.walk

    async def admit(self, engine: EngineHandle) -> None:
        """An engine has loaded: let the learner give it weights, and then give it work."""
        self._walk()
        self.engines.setdefault(engine.key, engine)

    async def admit_reference(self, engine: EngineHandle) -> None:
        """The engine that samples from the reference has loaded; it needs no weights."""
        fleet = self._walk().reference_fleet
        assert fleet is not None, "data.source asks for no replies of the reference"
        fleet.join(engine)

    async def lost(self, key: str, reason: str) -> None:
        """An engine is dead or stuck and is being replaced."""
        walk = self._walk()
        self.engines.pop(key, None)
        for fleet in (walk.fleet, walk.reference_fleet):
            if fleet is not None:
                fleet.lost(key, reason)
                fleet.suspects.pop(key, None)

    async def release(self, key: str) -> None:
        """Let an engine go; returns once others go on with what it had begun."""
        self._walk()
        self.engines.pop(key, None)
        await self.fleet.release(key)

    async def status(self) -> Status:
        """For the supervisor's look."""
        if self.walk is None:
            return Status(is_set_up=False)
        fleets = [f for f in (self.walk.fleet, self.walk.reference_fleet) if f is not None]
        return Status(
            is_set_up=True,
            live=tuple(engine.key for engine in self.fleet.engines),
            suspects=tuple(pair for fleet in fleets for pair in fleet.suspects.items()),
            num_waiting=self.fleet.num_waiting,
            is_learner_waiting=time.monotonic() - self._polled_at < 2 * POLL_S,
        )

    # ---- the learner's calls: engines ------------------------------------------------------

    async def members(self, *, joining: bool, attempt: int) -> list[EngineHandle]:
        """All engines that can take weights, or only those that have none yet."""
        self._walk()
        refuse_older(attempt, self.attempt)
        live = {engine.key for engine in self.fleet.engines}
        return [e for key, e in self.engines.items() if not (joining and key in live)]

    async def suspect(self, key: str, reason: str) -> None:
        """The learner takes an engine for lost."""
        self._walk()
        self.engines.pop(key, None)
        self.fleet.lost(key, reason)
        self.fleet.suspects[key] = reason

    async def synced(self, keys: Sequence[str], attempt: int) -> None:
        """These engines have the learner's weights, and were probed."""
        self._walk()
        refuse_older(attempt, self.attempt)
        for key in keys:
            if key in self.engines:  # or it was lost or released since
                self.fleet.join(self.engines[key])

    # ---- the learner's calls: batches ------------------------------------------------------

    async def begin(self, version: int, attempt: int) -> None:
        """Start anew behind `version`; all engines need the learner's weights first."""
        walk = self._walk()
        self.attempt = max(self.attempt, latest_attempt(self.config.cluster.run_dir))
        refuse_older(attempt, self.attempt)
        self.fleet.clear()
        for answer in self._answers.values():
            answer.cancel()
        self._answers.clear()
        for engine in self.engines.values():
            engine.actor.abandon.remote()
        await walk.begin(version)
        self._is_begun = True

    def _begun(self, attempt: int) -> Walk:
        walk = self._walk()
        if not self._is_begun:
            raise NotBegun("the collector was started anew: begin first")
        refuse_older(attempt, self.attempt)
        return walk

    async def poll(self, what: int | str, attempt: int) -> Verdict:
        """Whether a step's batch, or the answers to `what`, can be taken; says so within 2 s.

        Raises what ended the collecting.
        """
        walk = self._begun(attempt)
        until = time.monotonic() + POLL_S
        while True:
            if isinstance(what, int):
                is_ready = walk.is_ready(what)
            else:
                answer = self._answers[what]
                is_ready = answer.done()
            if is_ready:
                return "READY"
            self._polled_at = time.monotonic()
            if self.engines.keys() - {engine.key for engine in self.fleet.engines}:
                return "SYNC"
            if time.monotonic() > until:
                return "WAIT"
            await asyncio.sleep(0.002)

    async def take(
        self, step: int, rank: int, world_size: int, attempt: int
    ) -> tuple[list[Any], list[LedgerRow], dict[str, float]]:
        """A rank's share of a step's groups as references, rows for `commit`, and timing."""
        return await self._begun(attempt).take(step, rank, world_size)

    async def commit(self, step: int, rows: Sequence[LedgerRow], attempt: int) -> None:
        """Record the groups of a step as used; may come again, and before `begin`."""
        self._walk()
        refuse_older(attempt, max(self.attempt, latest_attempt(self.config.cluster.run_dir)))
        Ledger(self.config.cluster.run_dir).commit(step, rows)

    async def advance(self, version: int, rows: Sequence[LedgerRow], attempt: int) -> None:
        """Step `version` was learned from and its weights are on the engines."""
        walk = self._begun(attempt)
        # A successor on another cluster has a collector of its own, and the same run folder.
        refuse_older(attempt, latest_attempt(self.config.cluster.run_dir))
        await walk.advance(version, rows)

    async def move_reference(self, path: str, attempt: int) -> None:
        """Let the reference answer from another folder."""
        await self._begun(attempt).move_reference(path)

    async def ask(self, name: str, prompts: Sequence[Prompt], attempt: int) -> None:
        """Let the policy answer held-out prompts, under a name to poll for."""
        walk = self._begun(attempt)
        if name not in self._answers:
            self._answers[name] = asyncio.create_task(walk.evaluate(prompts))

    async def answers(self, name: str, attempt: int) -> list[JudgedReply]:
        """The judged replies to what was asked."""
        self._begun(attempt)
        return await self._answers[name]

    async def stats(self) -> dict[str, int]:
        """Retries of scoring calls so far."""
        return {"retries": sum(group.retries for group in self._walk().judges.groups())}

    def __repr__(self) -> str:
        return f"Collector(version {self.walk.version if self.walk else 'none'})"
