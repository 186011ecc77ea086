"""Spreading prompt groups over rollout engines that may come, go and die at any time.

    generate ─▶ pick (least to do, same prompt to the same engine) ─▶ engine.sample
                  ▲                                                     │
                  └── engine lost: anew    engine leaving: from its tokens on ──┘

A group is asked of one engine at a time. An engine that is lost takes nothing along but time; one
that leaves hands over what it has begun.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from zlib import crc32

from ray.exceptions import ObjectLostError, RayActorError

from actors.partials import Partial
from actors.rollout import EngineDied, SampleRequest
from cluster.deadlines import late
from cluster.engines import EngineHandle
from configs.schema import RunConfig
from rl.types import Rollout

logger = logging.getLogger(__name__)

AFFINITY_SLACK = 2
"""Groups by which the engine that knows a prompt may be behind the least busy one."""


@dataclass(kw_only=True, eq=False)
class Seat:
    """A live engine and the groups it works on."""

    engine: EngineHandle
    flying: set[asyncio.Task[Any]] = field(default_factory=set)
    is_leaving: bool = False


class Fleet:
    """Sends prompts to engines and waits for whole groups, never without a deadline.

    With `engines` given, nobody else will join: once all are lost, what they were asked for fails.
    """

    def __init__(self, config: RunConfig, engines: Sequence[EngineHandle] = ()) -> None:
        placement = config.cluster.rollout
        self.run_dir = config.cluster.run_dir
        self.deadline_s = placement.generate_deadline_s
        self.attempts = placement.attempts
        # Where strings end a reply, one that spans two engines' parts would be overlooked.
        self.continues = not config.data.sampling.stop
        self.suspects: dict[str, str] = {}
        """Key -> why an engine is taken for lost, until somebody replaces it."""
        self.retries: dict[int, int] = {}
        """Group -> how often it was asked for again."""
        self.num_retried = 0
        """The sum of all those so far."""
        self.num_waiting = 0
        """Groups that are asked for and not whole."""
        self._seats: dict[str, Seat] = {}
        self._joined = asyncio.Event()
        self._is_fixed = bool(engines)
        for engine in engines:
            self.join(engine)

    @property
    def engines(self) -> list[EngineHandle]:
        """Those that get work."""
        return [seat.engine for seat in self._seats.values() if not seat.is_leaving]

    def join(self, engine: EngineHandle) -> None:
        """Give an engine work from now on."""
        if engine.key not in self._seats:
            self._seats[engine.key] = Seat(engine=engine)
        self._joined.set()

    def lost(self, key: str, reason: str) -> None:
        """Ask others, at once, for what an engine was asked for."""
        seat = self._seats.pop(key, None)
        if seat is None:
            return
        self.suspects[key] = reason
        logger.warning("lost %s with %d groups: %s", key, len(seat.flying), reason)
        for call in seat.flying:
            call.cancel()

    async def release(self, key: str) -> None:
        """Let an engine go; returns once others go on with its unfinished groups."""
        seat = self._seats.get(key)
        if seat is None:
            return
        seat.is_leaving = True
        try:
            await asyncio.wait_for(seat.engine.actor.hand_over.remote(), self.deadline_s)
            if seat.flying:
                await asyncio.wait(set(seat.flying), timeout=self.deadline_s)
        except (RayActorError, TimeoutError, EngineDied):
            logger.warning("%s left without handing over", key, exc_info=True)
        for call in seat.flying:
            call.cancel()
        self._seats.pop(key, None)

    def clear(self) -> None:
        """Take all engines out; who waits for a reply waits for others to join."""
        for seat in self._seats.values():
            for call in seat.flying:
                call.cancel()
        self._seats.clear()

    async def generate(self, requests: Sequence[SampleRequest]) -> list[list[Rollout]]:
        """One list of rollouts per request, in order.

        Raises RuntimeError once a group has been asked for `cluster.rollout.attempts` times.
        """
        return list(await asyncio.gather(*(self._group(request) for request in requests)))

    async def _group(self, request: SampleRequest) -> list[Rollout]:
        self.num_waiting += 1
        try:
            return await self._sampled(request)
        finally:
            self.num_waiting -= 1

    async def _sampled(self, request: SampleRequest) -> list[Rollout]:
        whole: dict[int, Rollout] = {}
        reason, tries = "", 0
        while tries < self.attempts:
            seat = await self._pick(request)
            answer = await self._ask(seat, request)
            if isinstance(answer, str):
                tries, reason = tries + 1, answer
                self.retries[request.group_id] = self.retries.get(request.group_id, 0) + 1
                self.num_retried += 1
                continue
            whole |= {part.sample: part for part in answer if isinstance(part, Rollout)}
            begun = [part for part in answer if isinstance(part, Partial)]
            if not begun:
                return [whole[sample] for sample in sorted(whole)]
            if self.continues:
                request = replace(request, partials=tuple(begun))
            else:
                whole = {}
        raise RuntimeError(
            f"group {request.group_id} got no replies in {self.attempts} tries (phase: sample); "
            f"the last: {reason}"
        )

    async def _ask(self, seat: Seat, request: SampleRequest) -> list[Rollout | Partial] | str:
        """The engine's answer, or why there is none."""
        engine = seat.engine
        call = asyncio.create_task(_awaited(engine.actor.sample.remote(request)))
        seat.flying.add(call)
        try:
            await asyncio.wait({call}, timeout=self.deadline_s)
            if not call.done():
                setting = "cluster.rollout.generate_deadline_s"
                reason = late(engine.name, "sample", self.deadline_s, self.run_dir, setting)
                self.lost(engine.key, reason)
                return reason
            if call.cancelled():
                return self.suspects.get(engine.key, f"{engine.key} left")
            return call.result()
        except (RayActorError, ObjectLostError, EngineDied) as error:
            reason = f"{engine.key}: {str(error).strip().splitlines()[-1]}"
            self.lost(engine.key, reason)
            return reason
        finally:
            seat.flying.discard(call)
            call.cancel()

    async def _pick(self, request: SampleRequest) -> Seat:
        """The engine with the least to do, or the one that has seen this prompt if it is near."""
        while True:
            free = [seat for seat in self._seats.values() if not seat.is_leaving]
            if free:
                break
            if self._is_fixed:
                raise RuntimeError(f"no engine is left: {'; '.join(self.suspects.values())}")
            self._joined.clear()
            await self._joined.wait()
        known = max(free, key=lambda seat: affinity(request.prompt.tokens, seat.engine.name))
        least = min(free, key=lambda seat: len(seat.flying))
        return known if len(known.flying) - len(least.flying) < AFFINITY_SLACK else least


def affinity(tokens: Sequence[int], engine: str) -> int:
    """How much a prompt belongs to an engine, whose cache then holds its keys and values.

    The engine of the highest number has it, so that one that comes or goes moves no prompts but its
    own (rendezvous hashing, Thaler and Ravishankar 1998).
    """
    return crc32(engine.encode(), crc32(repr(list(tokens)).encode()))


async def _awaited(ref: Any) -> Any:
    return await ref
