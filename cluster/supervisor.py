"""Watches the engines and the collector of a run, replaces what fails, and sizes the fleet.

A thread of the driver looks at everything every `cluster.rollout.check_interval_s`:

    starting ─ loaded ─▶ joining ─ synced by the learner ─▶ live ─ leaving ─▶ gone
        └────────────── dead, stuck, suspected ───────────────┴──▶ killed; its seat is filled anew

It only decides who is there. Work is routed by the collector, weights are sent by the learner, and
each of them works on while the supervisor is busy or gone.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from cluster.collector import Status
from cluster.deadlines import log_end
from cluster.engines import EngineHandle, create_engine, engine_names
from cluster.events import record
from cluster.scaling import Sizing, asked
from cluster.seats import Leaving, Seat, failure_of, has_lost_its_node, is_done
from configs.schema import RunConfig
from rl.data.stored import Item

logger = logging.getLogger(__name__)

START_TRIES = 3
"""Failed starts in a row after which a seat stays empty for a while; with all others empty as well
the run is given up."""
REST_S = 60.0
"""How long such a seat stays empty."""
QUICK_S = 15.0
"""What the collector answers a look within."""
SET_UP_S = 120.0


class Supervisor:
    """Keeps a run's engines and collector going from `start` to `stop`.

    >>> # with house.open(config, items) as supervisor: fit(..., supervisor.failure)
    """

    def __init__(
        self,
        config: RunConfig,
        items: list[Item],
        collector: Any,
        seats: list[Seat],
        create: Callable[[RunConfig, str, str, int], EngineHandle] = create_engine,
    ) -> None:
        self.config, self.items = config, items
        self.collector = collector
        self.seats = {seat.name: seat for seat in seats}
        self.create = create
        self.placement = config.cluster.rollout
        self.sizing = Sizing(placement=self.placement)
        self.error: BaseException | None = None
        self.restarts = 0
        """Engines and collectors that were replaced."""
        self._incarnations = {seat.name: seat.engine.incarnation for seat in seats}
        self._leaving: list[Leaving] = []
        self._resting: dict[str, tuple[Seat, float]] = {}
        """Seats whose engines do not start -> until when they stay empty."""
        self._no_room_until = 0.0
        """Until when a fleet that found no room does not try to grow again."""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="supervisor")
        self._is_set_up = False
        self._unanswered_since: float | None = None

    # ---- from outside ----------------------------------------------------------------------

    def __enter__(self) -> "Supervisor":
        self._set_up()
        for seat in self.seats.values():
            self._start(seat)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End watching; engines and collector stay."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(QUICK_S + 5)
        for one in self._leaving * ray.is_initialized():
            ray.kill(one.engine.actor)
        self._leaving = []

    def failure(self) -> BaseException | None:
        """What makes going on useless, if anything does."""
        return self.error

    @property
    def num_resting(self) -> int:
        """Seats that stay empty for a while, since their engines do not start."""
        return len(self._resting)

    def engines(self) -> list[EngineHandle]:
        """Who fills the seats at this moment."""
        return [seat.engine for seat in self.seats.values()]

    # ---- the thread ------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stopped.wait(self._pause()):
            try:
                self._look()
            except Exception as error:
                if self._stopped.is_set() or not ray.is_initialized():
                    return
                if isinstance(error, StartFailed):
                    self.error = error
                    return
                logger.exception("a look at the fleet failed")

    def _pause(self) -> float:
        """Looks are close together while somebody is starting, so that nobody waits for work."""
        is_busy = any(not seat.is_live for seat in self.seats.values())
        return (
            min(0.2, self.placement.check_interval_s)
            if is_busy
            else (self.placement.check_interval_s / 4)
        )

    def _look(self) -> None:
        status = self._status()
        if status is None:
            return
        if not status.is_set_up:
            self._event("collector_replaced")
            self.restarts += 1
            self._set_up()
            for seat in self.seats.values():
                seat.is_admitted = False
                if seat.is_loaded:
                    self._admit(seat)
            return
        suspects = dict(status.suspects)
        for seat in list(self.seats.values()):
            reason = suspects.get(seat.engine.key) or self._ill(seat)
            if reason:
                self._replace(seat, reason)
            elif seat.is_loaded and not seat.is_admitted:
                self._admit(seat)
            elif seat.is_loaded and not seat.is_live and seat.engine.key in status.live:
                self._went_live(seat)
        self._end_those_that_left()
        self._fill_empty_seats()
        self._leave_draining_nodes()
        wish = asked(self.config.cluster.run_dir)
        if self.sizing.is_elastic or wish is not None:
            self._resize(status, wish)

    def _status(self) -> Status | None:
        """None where the collector does not answer; one that is stuck is started anew."""
        try:
            status: Any = ray.get(self.collector.status.remote(), timeout=QUICK_S)
        except GetTimeoutError:
            self._event("collector_stuck", seconds=QUICK_S)
            ray.kill(self.collector, no_restart=False)
            return None
        except RayActorError:
            return None  # Ray is starting it anew
        return status

    def _set_up(self) -> None:
        ray.get(self.collector.set_up.remote(self.config, self.items), timeout=SET_UP_S)
        self.collector.ready.remote()  # judges load while the engines do

    # ---- one engine ------------------------------------------------------------------------

    def _start(self, seat: Seat) -> None:
        seat.since = time.monotonic()
        seat.placed_at, seat.check = None, None
        seat.is_loaded = seat.is_admitted = seat.is_live = False
        seat.placed, seat.started = (
            seat.engine.actor.node.remote(),
            seat.engine.actor.start.remote(),
        )

    def _ill(self, seat: Seat) -> str:
        """Why an engine has to be replaced; nothing while it is well."""
        if not seat.is_loaded:
            return self._not_started(seat)
        now = time.monotonic()
        if seat.check is None:
            if now - seat.checked_at >= self.placement.check_interval_s:
                seat.check, seat.checked_at = seat.engine.actor.check.remote(), now
            return ""
        if is_done(seat.check):
            call, seat.check = seat.check, None
            return failure_of(call)
        if now - seat.checked_at > self.placement.check_deadline_s:
            return f"it generated nothing for {now - seat.checked_at:.1f} s"
        return ""

    def _not_started(self, seat: Seat) -> str:
        now = time.monotonic()
        if seat.placed_at is None and is_done(seat.placed) and not failure_of(seat.placed):
            seat.placed_at = now
            node = ray.get(seat.placed)
            self._event("engine_placed", engine=seat.engine.key, node=node)
        if is_done(seat.started):
            reason = failure_of(seat.started)
            if reason:
                return f"it did not start: {reason}"
            seat.is_loaded, seat.failed_starts = True, 0
            seat.checked_at = now
            return ""
        if seat.placed_at is None and self.sizing.is_elastic:
            return ""  # it waits for a node to come, or is withdrawn
        if now - (seat.placed_at or seat.since) > self.placement.start_deadline_s:
            return (
                f"it did not start within {self.placement.start_deadline_s:.0f} s; raise "
                "cluster.rollout.start_deadline_s if it needs longer"
                f"{log_end(self.config.cluster.run_dir, seat.name)}"
            )
        return ""

    def _admit(self, seat: Seat) -> None:
        admit = self.collector.admit if seat.is_synced else self.collector.admit_reference
        ray.get(admit.remote(seat.engine), timeout=QUICK_S)  # where it fails, at the next look
        seat.is_admitted = True
        if not (seat.is_synced or seat.is_live):
            self._went_live(seat)

    def _went_live(self, seat: Seat) -> None:
        now = time.monotonic()
        facts = {"engine": seat.engine.key, "seconds": round(now - seat.since, 2)}
        if seat.replaces:
            after = round(now - seat.lost_at, 2)
            self._event("engine_replaced", **facts, replaces=seat.replaces, after_s=after)
        else:
            self._event("engine_joined", **facts)
        seat.is_live, seat.replaces = True, ""

    def _replace(self, seat: Seat, reason: str) -> None:
        old = seat.engine
        self._event("engine_lost", engine=old.key, reason=reason[:500])
        logger.warning("%s is replaced: %s", old.key, reason)
        self.collector.lost.remote(old.key, reason)
        ray.kill(old.actor)
        if seat.is_loaded:
            self.restarts += 1
        elif not has_lost_its_node(seat.started):
            seat.failed_starts += 1
        seat.replaces, seat.lost_at = seat.replaces or old.key, time.monotonic()
        if seat.failed_starts >= START_TRIES:
            self._rest(seat, reason)
            return
        seat.engine = self._created(seat.name, seat.path)
        self._start(seat)

    def _rest(self, seat: Seat, reason: str) -> None:
        """Leave a seat empty for a while, as long as others do the work."""
        others = [
            other
            for other in self._fleet()
            if other is not seat and (other.is_live or other.placed_at is not None)
        ]
        if not (others and seat.is_synced):
            raise StartFailed(f"{seat.name} failed to start {START_TRIES} times: {reason}")
        logger.warning("%s stays empty for %.0f s: it does not start", seat.name, REST_S)
        self._event("seat_empty", seat=seat.name, seconds=REST_S, reason=reason[:500])
        del self.seats[seat.name]
        self._resting[seat.name] = (seat, time.monotonic() + REST_S)

    def _fill_empty_seats(self) -> None:
        """Try again where engines did not start; at once where no other one is left."""
        is_needed = not any(seat.is_live for seat in self._fleet())
        for name, (seat, until) in list(self._resting.items()):
            if is_needed or time.monotonic() > until:
                del self._resting[name]
                seat.failed_starts = START_TRIES - 1
                seat.engine = self._created(name, seat.path)
                self.seats[name] = seat
                self._start(seat)

    def _created(self, name: str, path: str) -> EngineHandle:
        number = self._incarnations.get(name, -1) + 1
        self._incarnations[name] = number
        return self.create(self.config, name, path, number)

    # ---- size ------------------------------------------------------------------------------

    def _fleet(self) -> list[Seat]:
        return [seat for seat in self.seats.values() if seat.is_synced]

    def _resize(self, status: Status, wish: int | None) -> None:
        fleet, now = self._fleet(), time.monotonic()
        wanted = self.sizing.wanted(
            now, len(fleet), status.num_waiting, status.is_learner_waiting, wish
        )
        waiting = [seat for seat in fleet if seat.placed_at is None and not seat.is_loaded]
        patience = self.placement.start_deadline_s
        if waiting and len(fleet) > 1 and now - waiting[-1].since > patience:
            self._no_room_until = now + patience
            self._withdraw(waiting[-1], f"no room was found for it within {patience:.0f} s")
        elif wanted < len(fleet) and waiting:
            self._withdraw(waiting[-1], "it is not needed any more")
        elif any(not seat.is_live for seat in fleet):
            return  # one change at a time
        elif wanted > len(fleet) and now > self._no_room_until:
            self._add(status.num_waiting)
        elif wanted < len(fleet):
            self._release(fleet[-1], "too little to do" if wish is None else "asked for")

    def _add(self, num_waiting: int) -> None:
        names = engine_names(len(self.seats) + len(self._resting) + 1)
        name = next(name for name in names if name not in {*self.seats, *self._resting})
        path = self.config.model.path
        seat = Seat(name=name, path=path, engine=self._created(name, path))
        self._event("engine_added", engine=seat.engine.key, waiting=num_waiting)
        self.seats[name] = seat
        self._start(seat)

    def _withdraw(self, seat: Seat, reason: str) -> None:
        """Ask for an engine no more that has found no place yet."""
        self._event("engine_withdrawn", engine=seat.engine.key, reason=reason)
        del self.seats[seat.name]
        ray.kill(seat.engine.actor)

    def _release(self, seat: Seat, reason: str) -> None:
        """Let an engine hand its work over; a later look ends it."""
        self._event("engine_leaving", engine=seat.engine.key, reason=reason)
        del self.seats[seat.name]
        call = self.collector.release.remote(seat.engine.key)
        end = time.monotonic() + self.placement.release_s
        self._leaving.append(Leaving(engine=seat.engine, call=call, end=end))

    def _end_those_that_left(self) -> None:
        for one in list(self._leaving):
            is_late = time.monotonic() > one.end
            if not (is_late or is_done(one.call)):
                continue
            reason = "not in time" if is_late else failure_of(one.call)
            if reason:
                logger.warning("%s did not hand over: %s", one.engine.key, reason)
                self.collector.lost.remote(one.engine.key, "it left")
            ray.kill(one.engine.actor)
            self._leaving.remove(one)
            self._event("engine_released", engine=one.engine.key)

    def _leave_draining_nodes(self) -> None:
        """Move engines off nodes that will be taken away, while these still work."""
        from ray._private.state import state  # no public way tells which nodes drain

        draining = set(state.get_draining_nodes())
        for seat in self._fleet() if draining else []:
            if seat.placed_at is None or not seat.is_loaded:
                continue
            if ray.get(seat.placed) in draining:
                self._release(seat, "its node is being taken away")
                seat.engine = self._created(seat.name, seat.path)
                self.seats[seat.name] = seat
                self._start(seat)

    def _event(self, kind: str, **facts: Any) -> None:
        record(self.config.cluster.run_dir, kind, **facts)


class StartFailed(RuntimeError):
    """An engine fails to start again and again: it is not a matter of bad luck."""
