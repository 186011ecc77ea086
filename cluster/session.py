"""The learner's side of the collector, which may be started anew at any moment.

    wait for step s: poll ─▶ READY: take    SYNC: give newcomers weights, poll again    WAIT: again

Rank 0 polls and tells the others, so that all ranks publish and take together. A collector that was
started anew has lost what was on its way; the learner commits what it has used, begins again behind
its present step, and asks for the same step once more.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import torch.distributed as dist
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    ObjectLostError,
    RayTaskError,
)

from cluster.deadlines import late
from cluster.engines import EngineHandle
from cluster.errors import Fenced, NotBegun, Unrecoverable, carrying, root_cause
from cluster.evaluation import JudgedReply
from cluster.ledger import LedgerRow
from configs.schema import RunConfig
from rl.types import Experience, Metrics, Prompt

logger = logging.getLogger(__name__)

GONE = (ActorUnavailableError, ActorDiedError, ObjectLostError)
"""What calls raise whose actor is being started anew, and objects whose owner has died."""
RETRY_S = 0.25
RESTART_S = 180.0
"""How long a collector may take to come back."""


class CollectorClient:
    """Calls to the collector by one learner attempt, each with a deadline."""

    def __init__(self, config: RunConfig, collector: Any, attempt: int) -> None:
        self.run_dir = config.cluster.run_dir
        self.deadline_s = config.cluster.rollout.generate_deadline_s
        self.collector = collector
        self.attempt = attempt

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """The answer; raises NotBegun where the collector knows nothing of this run any more.

        Raises Unrecoverable with the first cause where collecting itself has failed.
        """
        until = time.monotonic() + RESTART_S
        while True:
            try:
                call = getattr(self.collector, method).remote(
                    *arguments, **named, attempt=self.attempt
                )
                return ray.get(call, timeout=self.deadline_s)
            except (NotBegun, Fenced):
                raise
            except RayTaskError as error:  # also where a worker of the collector's has died
                raise carrying(Unrecoverable(root_cause(error)), error) from error
            except GONE as error:
                # The first may have been answered before the actor died: nothing is done twice
                # that must not be, and the new one says NotBegun.
                if time.monotonic() > until:
                    raise RuntimeError(
                        f"the collector did not come back within {RESTART_S:.0f} s"
                    ) from error
                time.sleep(RETRY_S)
            except GetTimeoutError as error:
                setting = "cluster.rollout.generate_deadline_s"
                reason = late("collector", method, self.deadline_s, self.run_dir, setting)
                raise RuntimeError(reason) from error


class LiveRoster:
    """The engines of a run, as the collector knows them."""

    def __init__(self, client: CollectorClient) -> None:
        self.client = client

    def members(self, *, joining: bool) -> list[EngineHandle]:
        """Those that can take weights; with `joining`, only those that have none yet."""
        try:
            return self.client.call("members", joining=joining)
        except NotBegun:
            return []  # the session begins again, and everybody is new then

    def suspect(self, key: str, reason: str) -> None:
        """Have an engine replaced."""
        logger.warning("lost %s in a sync: %s", key, reason)
        try:
            ray.get(self.client.collector.suspect.remote(key, reason), timeout=30)
        except (*GONE, GetTimeoutError, NotBegun):
            logger.warning("nobody to tell that %s is lost", key)

    def synced(self, keys: Sequence[str]) -> None:
        """Give these engines work."""
        try:
            self.client.call("synced", keys)
        except NotBegun:
            logger.warning("the collector was started anew while engines were synced")


class Session:
    """What a learner rank takes from the collector and tells it; rank 0 does the talking."""

    def __init__(
        self,
        config: RunConfig,
        collector: Any,
        attempt: int,
        rank: int,
        world_size: int,
        sync_newcomers: Callable[[], None],
    ) -> None:
        """`sync_newcomers` is a collective that gives engines without weights the present ones."""
        self.client = CollectorClient(config, collector, attempt)
        self.rank, self.world_size = rank, world_size
        self.sync_newcomers = sync_newcomers
        self._version = 0
        self._rows: list[LedgerRow] = []
        """Of the step that was taken and is not recorded yet."""
        self._used: tuple[int, list[LedgerRow]] | None = None
        """The last step that was learned from, for a collector that forgot to record it."""
        self._question: tuple[str, list[Prompt]] | None = None

    def begin(self, version: int) -> None:
        """Start behind `version`: what was recorded later is run again."""
        self._version, self._used = version, None
        if self.rank == 0:
            self._begin()

    def _begin(self) -> None:
        until = time.monotonic() + RESTART_S
        while True:
            try:
                if self._used is not None:
                    self.client.call("commit", *self._used)
                self.client.call("begin", self._version)
                if self._question is not None:
                    self.client.call("ask", *self._question)
                return
            except NotBegun as error:  # the supervisor sets it up again
                if time.monotonic() > until:
                    raise RuntimeError(
                        f"the collector was started anew and not set up within {RESTART_S:.0f} s "
                        "(phase: begin); see logs/driver.log"
                    ) from error
                time.sleep(RETRY_S)

    def take(self, step: int) -> tuple[list[Experience], Metrics]:
        """This rank's share of a step's groups; waits as long as sampling takes."""
        while True:
            self._wait(step)
            experiences, timing = self._fetch(step)
            if self._agreed(experiences is not None):
                assert experiences is not None
                return experiences, timing
            self._begin_again()

    def _wait(self, what: int | str) -> None:
        while True:
            verdict = self._shared(self._poll(what) if self.rank == 0 else None)
            if isinstance(verdict, BaseException):
                raise verdict
            if verdict == "READY":
                return
            if verdict == "SYNC":
                self.sync_newcomers()

    def _poll(self, what: int | str) -> str | BaseException:
        try:
            return self.client.call("poll", what)
        except NotBegun:
            logger.warning(
                "the collector was started anew: beginning again behind %d", self._version
            )
            self._begin()
            return "WAIT"
        except Exception as error:  # noqa: BLE001 - raised by all ranks
            return error

    def _fetch(self, step: int) -> tuple[list[Experience] | None, Metrics]:
        """None where the collector went away with them."""
        try:
            refs, rows, timing = self.client.call("take", step, self.rank, self.world_size)
            self._rows = rows
            return ray.get(refs, timeout=self.client.deadline_s), timing
        except (*GONE, NotBegun):
            logger.warning("the groups of step %d were lost with the collector", step)
            return None, {}
        except GetTimeoutError as error:
            setting, limit = "cluster.rollout.generate_deadline_s", self.client.deadline_s
            raise RuntimeError(
                late("collector", "take", limit, self.client.run_dir, setting)
            ) from error

    def _begin_again(self) -> None:
        if self.rank == 0:
            self._begin()

    def advance(self, step: int) -> None:
        """Step `step` was learned from: its groups are used."""
        self._version, self._used = step, (step, self._rows)
        if self.rank != 0:
            return
        try:
            self.client.call("advance", step, self._rows)
        except NotBegun:
            self._begin()

    def move_reference(self, path: str, step: int) -> None:
        """Let the reference answer from the folder that was made after `step`; by rank 0."""
        try:
            self.client.call("move_reference", path)
        except NotBegun:
            # One that is started anew takes the newest, if it is not told to go back before it.
            self._version, self._used = step, (step, self._rows)
            self._begin()

    def answers(self, name: str, prompts: Sequence[Prompt]) -> list[JudgedReply] | None:
        """Have the policy answer held-out prompts; a collective, the replies are for rank 0."""
        while True:
            self._question = (name, list(prompts))
            if self.rank == 0:
                try:
                    self.client.call("ask", *self._question)
                except NotBegun:
                    self._begin()
            self._wait(name)
            replies: list[JudgedReply] | None = None
            is_there = True
            if self.rank == 0:
                try:
                    replies = self.client.call("answers", name)
                except NotBegun:
                    is_there = False
                    self._begin()
            if self._agreed(is_there):
                self._question = None
                return replies

    def is_written(self, path: Path) -> bool:
        """Whether rank 0 sees a file; the same on all ranks."""
        return bool(self._shared(path.exists()))

    # ---- between ranks ---------------------------------------------------------------------

    def _shared(self, value: Any) -> Any:
        """Rank 0's value, on all ranks."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def _agreed(self, is_fine: bool) -> bool:
        """Whether it is fine on every rank."""
        if self.world_size == 1:
            return is_fine
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, is_fine)
        return all(found)
