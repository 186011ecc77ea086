"""Seats of a fleet whose engines do not start, or find no room: the others are not held up."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.collector import Collector
from cluster.engines import create_engine
from cluster.scaling import ask
from cluster.seats import Seat
from cluster.supervisor import StartFailed, Supervisor
from configs.schema import RunConfig
from tests.faults.injection import until
from tests.integration.loop import tiny_run
from tests.integration.test_learner_restarts import events

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(400)]


@contextmanager
def watched(config: RunConfig, *paths: Path) -> Iterator[Supervisor]:
    """A fleet with a collector and without a learner."""
    Path(config.cluster.run_dir).mkdir()
    collector_class: Any = ray.remote(Collector)
    collector = collector_class.options(num_cpus=0).remote()
    seats = [
        Seat(
            name=f"engine-{number}",
            path=str(path),
            engine=create_engine(config, f"engine-{number}", str(path)),
        )
        for number, path in enumerate(paths)
    ]
    supervisor = Supervisor(config, [], collector, seats)
    try:
        with supervisor:
            yield supervisor
    finally:
        for actor in [collector, *(engine.actor for engine in supervisor.engines())]:
            ray.kill(actor)


def test_a_seat_that_cannot_be_filled_stays_empty_while_another_engine_is_there(
    world_model: Path, world_prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.supervisor.REST_S", 0.5)
    config = tiny_run(world_model, world_prompts, tmp_path / "run")
    empty = tmp_path / "empty"
    empty.mkdir()
    with watched(config, world_model, empty) as supervisor:
        until("an empty seat", lambda: events(config, "seat_empty"), None)
        assert len(events(config, "engine_lost")) == 3
        until("another try", lambda: len(events(config, "seat_empty")) == 2, None)
        assert len(events(config, "engine_lost")) == 4, "one more try, after a while"
        assert {event["seat"] for event in events(config, "seat_empty")} == {"engine-1"}
        assert supervisor.failure() is None
        until("the other engine", lambda: supervisor.seats["engine-0"].is_admitted, None)


def test_a_fleet_of_which_no_engine_starts_ends_the_run(
    world_model: Path, world_prompts: Path, tmp_path: Path
) -> None:
    config = tiny_run(world_model, world_prompts, tmp_path / "run")
    empty = tmp_path / "empty"
    empty.mkdir()
    with watched(config, empty, empty) as supervisor:
        until("the end", supervisor.failure, None)
        assert isinstance(supervisor.failure(), StartFailed)
        assert "failed to start 3 times" in str(supervisor.failure())


def test_an_engine_that_finds_no_room_is_withdrawn_once_it_is_not_wanted(
    world_model: Path, world_prompts: Path, tmp_path: Path
) -> None:
    config = tiny_run(
        world_model, world_prompts, tmp_path / "run", "cluster.rollout.min_engines=1",
        "cluster.rollout.max_engines=2", "cluster.rollout.cpus_per_engine=9",
    )  # fmt: skip
    with watched(config, world_model, world_model) as supervisor:
        until("a place", lambda: events(config, "engine_placed"), None)
        (placed,) = events(config, "engine_placed")
        ask(Path(config.cluster.run_dir), config, 1)
        until("withdrawal", lambda: events(config, "engine_withdrawn"), None)
        (withdrawn,) = events(config, "engine_withdrawn")
        assert {placed["engine"], withdrawn["engine"]} == {"engine-0", "engine-1"}
        assert list(supervisor.seats) == [placed["engine"]]
        assert supervisor.failure() is None
