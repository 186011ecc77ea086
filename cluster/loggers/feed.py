"""Rows of metrics.jsonl to all loggers of a run, none of which may hold up or hurt another.

    metrics.jsonl ─▶ lane of tensorboard (thread, place in the file) ─▶ TensorBoardLogger
                  ─▶ lane of wandb       (thread, place in the file) ─▶ WandbLogger

The file is each logger's queue: one that is behind, or fails, has lost nothing and holds no memory.
What has arrived is noted in `loggers/NAME.json` of the run folder, from where the next process goes
on.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from cluster.events import record
from cluster.files import replace_text
from cluster.loggers.build import memory_of, open_loggers, target_of
from cluster.loggers.protocol import CLOCK, MetricsLogger, RunFacts
from cluster.metrics.labels import run_name
from cluster.tail import Mark, MetricsTail
from configs.redaction import redact
from configs.schema import RunConfig

logger = logging.getLogger(__name__)

FIRST_RETRY_S, LAST_RETRY_S = 5.0, 300.0
"""After the first failure, and after many."""
END_S = 30.0
"""How long all loggers together may take to end."""


class LoggerFeed:
    """Feeds the loggers of one run.

    >>> feed = LoggerFeed(config)  # doctest: +SKIP
    >>> while run_goes_on:
    ...     feed.step()  # returns at once
    ...     time.sleep(2)
    >>> feed.close(finished=True)
    """

    def __init__(self, config: RunConfig, clock: Callable[[], float] = time.monotonic) -> None:
        """Only one process may feed the loggers of a run at a time."""
        self.lanes = [
            Lane(config, name, made, clock) for name, made in open_loggers(config).items()
        ]
        self._threads = [_Thread(lane) for lane in self.lanes]

    def step(self) -> None:
        """Have every logger look for new rows; does not wait for them."""
        for thread in self._threads:
            thread.wake.set()

    def close(self, *, finished: bool, within_s: float = END_S) -> None:
        """Log the last rows and end all loggers, as far as they manage `within_s`.

        `finished`: the run is at its end, not only interrupted. What a logger did not manage is
        logged when the run goes on. A library whose server does not answer may hold up the end of
        the process as well, for half a minute: one that must end at once uses `os._exit`.
        """
        until = time.monotonic() + within_s
        for thread in self._threads:
            thread.end(finished)
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                thread.lane.give_up(f"did not end within {within_s:g} s")


class _Thread(threading.Thread):
    """Calls a lane, which may block, whenever it is woken."""

    def __init__(self, lane: "Lane") -> None:
        super().__init__(daemon=True, name=f"logger-{lane.name}")
        self.lane = lane
        self.wake = threading.Event()
        self._end: bool | None = None
        self.start()

    def end(self, finished: bool) -> None:
        """Look once more, then close."""
        self._end = finished
        self.wake.set()

    def run(self) -> None:
        """Until the end."""
        while self._end is None:
            self.wake.wait()
            self.wake.clear()
            if self._end is None:
                self.lane.step()
        self.lane.close(finished=self._end)


class Memory(NamedTuple):
    """What is known to have arrived."""

    target: str
    """The logger's settings: with others it logs elsewhere, and begins anew."""
    run_id: str
    step: int | None = None
    """None until the record was opened for the first time."""
    marks: tuple[Mark, ...] = ()
    """Of metrics.jsonl, up to that step."""


class Lane:
    """One logger, its place in metrics.jsonl, and what becomes of its failures."""

    def __init__(
        self,
        config: RunConfig,
        name: str,
        made: MetricsLogger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.run_dir = Path(config.cluster.run_dir)
        self._config, self._logger, self._clock = config, made, clock
        self._file = memory_of(config, name)
        self._target = target_of(config, name)
        self._memory: Memory | None = None
        self._tail = MetricsTail(self.run_dir)
        self._is_open = False
        self._last, self._held = 0, 0
        """Steps: of the newest row that was read, and the newest that the logger has."""
        self._failures = 0
        self._retry_at = 0.0

    def step(self) -> None:
        """Log what is new; a failure is told once, and what failed is tried again later."""
        if self._failures and self._clock() < self._retry_at:
            return
        try:
            self._log_new()
        except Exception as error:  # noqa: BLE001 - every library has its own, and none may hurt
            self._fail(error)

    def close(self, *, finished: bool) -> None:
        """Log what is left, whatever failed before, and let the logger go."""
        try:
            self._log_new()
            self._logger.close(finished=finished)
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(error)

    def give_up(self, reason: str) -> None:
        """Tell that the logger is left to itself."""
        record(self.run_dir, "logger_failed", logger=self.name, error=reason)

    def _log_new(self) -> None:
        if not self._is_open:
            self._open()
        while rows := self._tail.read():
            newest = rows[-1].get("time_s", 0.0)
            for row in rows:
                before_s = newest - row.get("time_s", newest)
                self._log(row, row.get(CLOCK, self._tail.written_at - before_s))
            self._note(step=self._last, marks=tuple(self._tail.marks))
            if self._failures:
                record(self.run_dir, "logger_recovered", logger=self.name, step=self._last)
                self._failures = 0

    def _open(self) -> None:
        memory = self._memory or self._remembered()
        if memory is None:  # noted before anything is made under this id
            self._memory = memory = Memory(self._target, uuid.uuid4().hex[:16])
            self._note()
        self._memory = memory
        self._tail = MetricsTail(self.run_dir, memory.marks)
        facts = RunFacts(
            run_id=memory.run_id,
            name=run_name(self.run_dir),
            run_dir=self.run_dir,
            config=redact(self._config.model_dump(mode="json")),
        )
        self._held = self._logger.begin(facts, memory.step)
        self._is_open, self._last = True, memory.step or 0
        self._note(step=self._last)  # from now on, what is there is ours

    def _log(self, row: dict[str, Any], unix_time: float) -> None:
        step = row["step"]
        if step <= self._last:
            self._held = self._logger.rewind(step - 1)
        self._last = step
        if step > self._held:
            numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
            del numbers["step"]
            self._logger.log(step, unix_time, numbers)

    def _fail(self, error: Exception) -> None:
        """Begin again where everything had arrived, and later each time."""
        logger.info("logger %s failed", self.name, exc_info=error)
        if self._failures == 0:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            record(self.run_dir, "logger_failed", logger=self.name, error=reason[:300])
        self._retry_at = self._clock() + min(LAST_RETRY_S, FIRST_RETRY_S * 2**self._failures)
        self._failures += 1
        self._is_open = False
        with suppress(Exception):  # it has failed already
            self._logger.close(finished=False)

    def _note(self, **known: Any) -> None:
        assert self._memory is not None
        self._memory = self._memory._replace(**known)
        replace_text(self._file, json.dumps(self._memory))

    def _remembered(self) -> Memory | None:
        """Of the process before this one; None where this logger is new to the run."""
        if not self._file.exists():
            return None
        target, run_id, step, marks = json.loads(self._file.read_text())
        if target != self._target:
            return None
        return Memory(target, run_id, step, tuple(Mark(*mark) for mark in marks))
