"""The monitor actor: reads the run folder as it grows, exports figures, feeds loggers.

    metrics.jsonl, telemetry/, events.jsonl ─▶ monitor ─▶ ray.util.metrics ─▶ Prometheus
    metrics.jsonl ───────────────────────────▶        ─▶ TensorBoard, W&B, MLflow

One actor lives as long as the run, so that a series is not split where an engine or the learner is
started anew. Nobody waits for it: it is killed, or hangs, and the run goes on; Ray starts it again.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

# The cluster's settings have no public door.
from ray._raylet import Config  # pyright: ignore[reportAttributeAccessIssue]
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.loggers.feed import END_S, LoggerFeed
from cluster.metrics.exporter import Exporter
from cluster.metrics.labels import run_name
from cluster.metrics.telemetry import (
    FINISHED,
    TelemetryTail,
    ending_of,
    say_end,
    switch_off,
    switch_on,
)
from cluster.roles import Role
from cluster.runtime import namespace, role_env
from cluster.tail import JsonlTail, MetricsTail
from configs.schema import RunConfig

logger = logging.getLogger(__name__)

NAME = "monitor"
TICK_S = 0.25
"""How often it looks whether the run ends."""
SILENT_TICKS = 10
"""A process that told nothing for so many intervals is gone."""
FINISH_S = END_S + 10.0
"""How long its last round may take when a run ends, with loggers that do not answer."""


class Monitor:
    """One Ray actor a run.

    >>> # monitor = ray.remote(Monitor).options(name="monitor").remote(config)
    >>> # watching = monitor.watch.remote(); ...; say_end(run_dir, finished=True); ray.get(watching)
    """

    def __init__(self, config: RunConfig) -> None:
        self.run_dir = Path(config.cluster.run_dir)
        # Gauges are set at each look, and Ray drops those that were not since two exports.
        export_s = Config.metrics_report_interval_ms() / 1000
        self.interval_s = min(config.cluster.metrics.interval_s, export_s)
        self.role = Role(str(self.run_dir), NAME)
        self.exporter = Exporter(run_name(self.run_dir), config.model_dump(mode="json"))
        self.silent_s = SILENT_TICKS * config.cluster.metrics.interval_s
        self._steps = MetricsTail(self.run_dir)
        self._events = JsonlTail(self.run_dir / "events.jsonl")
        self._telemetry = TelemetryTail(self.run_dir)
        self._heard: dict[str, float] = {}
        self.feed = LoggerFeed(config)
        self.look()  # what is there already was counted before
        self.exporter.is_counting = True

    def watch(self) -> None:
        """Until the run says that it ends; then a last look.

        One call for all that time, on the main thread: between calls Ray looks for signals there a
        hundred times a second, which takes 0.7 % of a core.
        """
        is_well, looked = True, time.monotonic()
        while (ending := ending_of(self.run_dir)) is None:
            time.sleep(min(TICK_S, self.interval_s))
            if time.monotonic() - looked < self.interval_s:
                continue
            looked = time.monotonic()
            self.feed.step()
            try:
                self.look()
                is_well = True
            except Exception:  # it only shows what others do
                if is_well:
                    logger.warning("a look at the run folder failed", exc_info=True)
                is_well = False
        try:
            self.look()
        finally:
            self.feed.close(finished=ending == FINISHED)

    def look(self) -> None:
        """Read what is new and pass it on."""
        now = time.monotonic()
        while rows := self._steps.read():
            self.exporter.steps(rows)
        self.exporter.events(self._events.read())
        for role, lines in self._telemetry.read().items():
            self._heard[role] = now
            self.exporter.told(role, lines)
        late = now - self.silent_s
        for role in [role for role, heard in self._heard.items() if heard < late]:
            del self._heard[role]
            self.exporter.silent(role)
        self.exporter.show()

    def __repr__(self) -> str:
        return f"Monitor({self.exporter.run})"


@contextmanager
def monitored(config: RunConfig) -> Iterator[None]:
    """Show the run to whoever looks, for the length of the block."""
    if not config.cluster.metrics.enabled:
        switch_off(config.cluster.run_dir)
        yield
        return
    switch_on(config.cluster.run_dir, config.cluster.metrics.interval_s)
    monitor = _start(config)
    watching = monitor.watch.remote()
    finished = False
    try:
        yield
        finished = True
    finally:
        say_end(config.cluster.run_dir, finished=finished)
        _end(monitor, watching)


def _start(config: RunConfig) -> Any:
    """On the driver's node, which has the run folder."""
    here = ray.get_runtime_context().get_node_id()
    monitor_class: Any = ray.remote(Monitor)
    return monitor_class.options(
        name=NAME,
        namespace=namespace(config),
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,  # who takes its place watches on
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=True),
        runtime_env=role_env(1, "cpu"),
    ).remote(config)


def _end(monitor: Any, watching: Any) -> None:
    if not ray.is_initialized():
        return
    try:
        ray.get(watching, timeout=FINISH_S)
    except RayError:
        logger.warning("the monitor did not end its work", exc_info=True)
    finally:
        ray.kill(monitor)
