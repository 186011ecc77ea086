"""What vLLM counts in an engine: the newest of it for telemetry, all of it for Prometheus.

vLLM hands over its statistics at every iteration, each with one latency per token. Recording every
one through Ray would cost more than a percent of sampling, so they are put together and passed on
once a second; counters stay exact, and of the latencies a share is kept.
"""

import time
from dataclasses import fields
from typing import Any

from vllm.config import VllmConfig
from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

PASS_ON_S = 1.0
MOST_LATENCIES = 64
"""Latencies between tokens that are kept of those of one second."""


class EngineStats(RayPrometheusStatLogger):
    """vLLM's own Prometheus metrics through Ray, with the newest figures at hand."""

    def __init__(
        self, vllm_config: VllmConfig, engine_indexes: list[int] | None, told: dict[str, float]
    ) -> None:
        """`told` is kept up to date with figures of `cluster.metrics.table`."""
        super().__init__(vllm_config, engine_indexes)
        self.told = told
        self._pending: IterationStats | None = None
        self._queries = self._hits = 0
        self._passed_on = 0.0

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Take the statistics of one iteration."""
        if iteration_stats is not None:
            self._pending = added(self._pending, iteration_stats)
        if scheduler_stats is None:
            return
        waiting = scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
        self.told["engine/running"] = float(scheduler_stats.num_running_reqs)
        self.told["engine/waiting"] = float(waiting)
        self.told["engine/kv_cache"] = scheduler_stats.kv_cache_usage
        self._queries += scheduler_stats.prefix_cache_stats.queries
        self._hits += scheduler_stats.prefix_cache_stats.hits
        is_idle = not (scheduler_stats.num_running_reqs or waiting)
        now = time.monotonic()
        if now - self._passed_on < PASS_ON_S and not is_idle:
            return
        scheduler_stats.prefix_cache_stats.queries = self._queries
        scheduler_stats.prefix_cache_stats.hits = self._hits
        super().record(scheduler_stats, self._pending, mm_cache_stats, engine_idx)
        self._pending, self._queries, self._hits, self._passed_on = None, 0, 0, now


def stats_factory(told: dict[str, float]) -> type[EngineStats]:
    """What vLLM makes its logger of; the logger keeps `told` up to date."""

    class Told(EngineStats):
        def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int] | None) -> None:
            super().__init__(vllm_config, engine_indexes, told)

    return Told


def added(before: IterationStats | None, new: IterationStats) -> IterationStats:
    """The statistics of two stretches as of one."""
    if before is None:
        return new
    for name, value in vars(new).items():
        if isinstance(value, list):
            getattr(before, name).extend(value)
        elif name.startswith("num_"):
            _add(before, new, name)
    for part in fields(new.prompt_token_stats):
        if part.type in (int, "int"):
            _add(before.prompt_token_stats, new.prompt_token_stats, part.name)
    del before.inter_token_latencies_iter[MOST_LATENCIES:]
    return before


def _add(before: Any, new: Any, name: str) -> None:
    setattr(before, name, getattr(before, name) + getattr(new, name))
