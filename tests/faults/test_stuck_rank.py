"""A rank that stands still holds up all others in their collectives: the group is started again."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.integration.conftest import world_model
from tests.integration.processes import gone
from tests.integration.test_learner_restarts import (
    begin_sft,
    events,
    sft_run,
    steps_of,
    world_pairs,
)

__all__ = ["world_model", "world_pairs"]
pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(900)]


def test_a_stopped_rank_is_given_up_and_the_run_goes_on(
    world_model: Path, world_pairs: Path, tmp_path: Path
) -> None:
    import psutil

    config = sft_run(
        world_model, world_pairs, tmp_path / "run", "algorithm.num_steps=300",
        "cluster.checkpoint.interval=20", "cluster.learner.num_workers=2",
        "cluster.learner.phase_deadline_s=20",
    )  # fmt: skip
    process = begin_sft(config)
    deadline = time.monotonic() + 240
    while not events(config, "checkpoint_saved"):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    stopped = psutil.Process(events(config, "learner_started")[-1]["pids"][1])
    os.kill(stopped.pid, signal.SIGSTOP)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert [failure["restarted"] for failure in events(config, "learner_failure")] == [True]
    (stuck,) = events(config, "rank_stuck")
    assert (stuck["rank"], stuck["setting"]) == (0, "cluster.learner.phase_deadline_s")
    assert steps_of(config) == list(range(1, 301))
    assert gone([stopped], within_s=30), "it was left behind"
