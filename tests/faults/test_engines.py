"""Engines, collector and judges are killed in one run: it goes on, and its books are right."""

import time
from pathlib import Path

import pytest

from cluster.events import read_events
from tests.faults.accounting import stopped
from tests.faults.injection import (
    core_of,
    kill_process,
    pid_of,
    stop_process,
    wait_for_event,
    wait_for_phase,
    wait_for_steps,
)
from tests.integration.conftest import *  # noqa: F403 - its models and prompts
from tests.integration.loop import tiny_run
from tests.integration.processes import read_steps
from tests.integration.test_run import start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_run_outlives_its_engines_collector_and_judges(
    world_model: Path, world_prompts: Path, tmp_path: Path
) -> None:
    config = tiny_run(
        world_model,
        world_prompts,
        tmp_path / "run",
        "cluster.rollout.num_engines=2",
        "algorithm.num_steps=400",
        "algorithm.max_staleness=1",
        "cluster.checkpoint.interval=100",
    )
    run = tmp_path / "run"
    process = start(config)
    try:
        wait_for_steps(run, 2, process)

        wait_for_phase(run, "sampling", process)
        since = time.time()
        kill_process(core_of(run, "engine-0"))
        lost = wait_for_event(run, "engine_lost", process, since, engine="engine-0")
        assert lost["time"] - since < 30
        wait_for_event(run, "engine_replaced", process, since, replaces="engine-0")

        wait_for_phase(run, "sync", process)
        since = time.time()
        stop_process(core_of(run, "engine-1"))
        lost = wait_for_event(run, "engine_lost", process, since, engine="engine-1")
        assert lost["time"] - since < 45, "15 s on a machine of its own"
        wait_for_event(run, "engine_replaced", process, since, replaces="engine-1")

        since = time.time()
        kill_process(pid_of(run, "collector"))
        wait_for_event(run, "collector_replaced", process, since)
        reached = read_steps(run)[-1]
        wait_for_steps(run, reached + 2, process)

        since = time.time()
        kill_process(pid_of(run, "reward-judge-0"))
        wait_for_event(run, "judge_replaced", process, since)
        reached = read_steps(run)[-1]
        wait_for_steps(run, reached + 2, process)
        found = stopped(config, process)
    finally:
        process.kill()
    assert found.are_right, (found, read_events(run))
    assert found.discarded == 0, "the learner was never harmed: nothing is run again"
