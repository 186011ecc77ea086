"""Figures of a run as Ray's metrics; that Ray exports them is for tests/integration."""

from typing import Any

import pytest
from ray.util import metrics as ray_metrics

from cluster.metrics.exporter import Exporter
from cluster.metrics.table import STALENESS_BOUNDS
from cluster.metrics.telemetry import Told

CONFIG = {"feedback": {"rewards": {"rm": {"kind": "model"}}}}
Shown = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def shown(monkeypatch) -> Shown:
    """(name, labels) -> value of what was set or counted since it was last emptied."""
    seen: Shown = {}

    def of(metric: Any, tags: dict[str, str]) -> tuple[str, tuple[tuple[str, str], ...]]:
        return metric.info["name"], tuple(sorted(tags.items()))

    def set_gauge(self, value, tags):
        seen[of(self, tags)] = value

    def count(self, value, tags):
        seen[of(self, tags)] = seen.get(of(self, tags), 0.0) + value

    monkeypatch.setattr(ray_metrics.Gauge, "set", set_gauge)
    monkeypatch.setattr(ray_metrics.Counter, "inc", count)
    return seen


def exporter() -> Exporter:
    made = Exporter("first", CONFIG)
    made.is_counting = True
    return made


def at_start(one: Exporter) -> Shown:
    """Shown of a run from its first moment on."""
    return {("attune_unix_time", (RUN,)): one.began}


def told(**values: float) -> list[Told]:
    return [Told(time=0.0, phase=None, values=values)]


RUN = ("run", "first")


def test_a_gauge_is_set_again_whether_or_not_there_is_news(shown):
    one = exporter()
    one.steps([{"step": 1, "entropy": 2.0, "time/checkpoint": 0.5}, {"step": 2, "entropy": 1.5}])
    one.show()
    expected = at_start(one) | {
        ("attune_step", (RUN,)): 2.0,
        ("attune_entropy", (RUN,)): 1.5,
        ("attune_time_checkpoint", (RUN,)): 0.5,
    }
    assert shown == expected
    shown.clear()
    one.show()
    assert shown == expected


def test_gauges_of_a_silent_process_are_not_set_again(shown):
    one = exporter()
    for role in ("engine-0", "engine-1"):
        one.told(role, told(**{"engine/running": 3.0}))
    one.silent("engine-0")
    one.show()
    running = {("attune_engine_running", (("actor", "engine-1"), RUN)): 3.0}
    assert shown == at_start(one) | running
    one.told("engine-0", told(**{"engine/running": 1.0}))
    one.show()
    assert shown["attune_engine_running", (("actor", "engine-0"), RUN)] == 1.0


def test_labels_of_a_key_go_with_it_and_those_of_the_configuration(shown):
    one = exporter()
    one.steps([{"step": 1, "reward/rm/mean": 0.5, "reward/rm/part/mean": 0.25}])
    one.show()
    assert shown["attune_reward_mean", (("of", "judge"), ("reward", "rm"), RUN)] == 0.5
    assert shown["attune_reward_mean", (("of", "part"), ("reward", "rm/part"), RUN)] == 0.25


def test_counters_count_once_however_often_gauges_are_shown(shown):
    one = exporter()
    one.told("engine-0", told(**{"engine/tokens": 10.0}))
    one.told("engine-0", told(**{"engine/tokens": 25.0}))
    one.show()
    one.show()
    tokens = {("attune_engine_tokens", (("actor", "engine-0"), RUN)): 25.0}
    assert shown == at_start(one) | tokens


def test_a_counter_that_fell_was_started_anew_and_goes_on_from_0(shown):
    one = exporter()
    for value in (10.0, 25.0, 4.0, 6.0):
        one.told("engine-0", told(**{"engine/tokens": value}))
    assert shown == {("attune_engine_tokens", (("actor", "engine-0"), RUN)): 31.0}


def test_what_a_folder_held_before_was_counted_before(shown):
    one = Exporter("first", CONFIG)
    one.told("engine-0", told(**{"engine/tokens": 100.0}))
    one.events([{"kind": "engine_lost"}])
    one.is_counting = True
    one.told("engine-0", told(**{"engine/tokens": 107.0}))
    one.events([{"kind": "engine_lost"}, {"kind": "engine_lost"}])
    assert shown == {
        ("attune_engine_tokens", (("actor", "engine-0"), RUN)): 7.0,
        ("attune_events", (("kind", "engine_lost"), RUN)): 2.0,
    }


def test_replies_are_observed_by_age_once_a_step(shown, monkeypatch):
    seen: list[float] = []
    monkeypatch.setattr(ray_metrics.Histogram, "observe", lambda _, value, tags: seen.append(value))
    one = exporter()
    row = {"step": 1, "staleness/replies/0": 2, "staleness/replies/3": 1}
    one.steps([row])
    one.steps([row, {"step": 2, "staleness/replies/1": 1}])
    first = STALENESS_BOUNDS[0] / 2
    assert sorted(seen) == [first, first, 1.0, 3.0]


def test_a_run_that_goes_on_has_not_stood_still_since_last_night(shown):
    one = exporter()
    one.steps([{"step": 1, "unix_time": one.began - 50_000}])
    one.show()
    assert shown["attune_unix_time", (RUN,)] == one.began
    one.steps([{"step": 2, "unix_time": one.began + 5}])
    one.show()
    assert shown["attune_unix_time", (RUN,)] == one.began + 5
