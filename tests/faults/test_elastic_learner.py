"""Learner ranks follow the nodes: 1 to 2 to 1 in one run, by growth, by loss and by notice."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest

from configs.schema import RunConfig
from tests.faults.accounting import stopped
from tests.faults.nodes import Nodes
from tests.integration.conftest import world_model, world_prompts
from tests.integration.loop import tiny_run
from tests.integration.processes import wait_for_step
from tests.integration.test_learner_restarts import (
    begin_sft,
    events,
    sft_run,
    steps_of,
    world_pairs,
)
from tests.integration.test_run import start

__all__ = ["world_model", "world_pairs", "world_prompts"]
pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1200)]


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A cluster of a head and one node for learners."""
    # Ray's sockets have long names of their own, so the folder has a short one.
    folder = tmp_path_factory.mktemp("n") / "r"
    with Nodes(folder, head_cpus=4) as cluster:
        cluster.add("a", role="learner")
        yield cluster


def elastic_run(model: Path, pairs: Path, run_dir: Path, nodes: Nodes) -> RunConfig:
    return sft_run(
        model, pairs, run_dir, "algorithm.num_steps=100000",
        "algorithm.optimizer.learning_rate=1e-3", *elastic(nodes),
    )  # fmt: skip


def elastic(nodes: Nodes) -> list[str]:
    """One rank or two on nodes of their own."""
    return [
        "cluster.checkpoint.interval=20", "cluster.learner.num_workers=2",
        "cluster.learner.min_workers=1", "cluster.learner.resize_interval_s=3",
        "cluster.learner.labels.role=learner", f"cluster.address={nodes.address}",
    ]  # fmt: skip


def wait_for_attempt(
    config: RunConfig, number: int, world_size: int, process: subprocess.Popen[str]
) -> dict:
    """The attempt of that number, which has that many ranks and takes steps."""
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        started = events(config, "learner_started")
        if len(started) >= number:
            attempt = started[number - 1]
            assert attempt["world_size"] == world_size, started
            if steps_of(config)[-1:] > [attempt["version"] + 2]:
                return attempt
        time.sleep(0.1)
    raise TimeoutError(f"attempt {number} did not take a step: {events(config, 'learner_failure')}")


def stop(process: subprocess.Popen[str]) -> str:
    """By Ctrl-C."""
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    return output


def metrics(config: RunConfig) -> list[dict]:
    """Step by step."""
    lines = Path(config.cluster.run_dir, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_steps_follow(config: RunConfig) -> None:
    """No step is missing or doubled, and imitation went on over all restarts."""
    rows = metrics(config)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[-1]["loss/nll"] < 0.8 * rows[0]["loss/nll"]


def test_a_learner_grows_with_a_node_and_goes_on_without_it(
    world_model: Path, world_prompts: Path, tmp_path: Path, nodes: Nodes
) -> None:
    config = tiny_run(
        world_model, world_prompts, tmp_path / "run", "algorithm.num_steps=100000",
        "algorithm.max_staleness=1", *elastic(nodes),
        *(f"cluster.{role}.labels.role=!learner" for role in ("rollout", "reward", "reference")),
    )  # fmt: skip
    process = start(config)
    try:
        wait_for_attempt(config, 1, 1, process)
        nodes.add("b", role="learner")
        grown = wait_for_attempt(config, 2, 2, process)
        assert grown["version"] % 20 == 0, "it grew at a checkpoint"
        assert events(config, "learner_failure") == [], "growth is no failure"
        nodes.kill("b")
        wait_for_attempt(config, 3, 1, process)
        assert [failure["restarted"] for failure in events(config, "learner_failure")] == [True]
        found = stopped(config, process)
    finally:
        process.kill()
    assert found.are_right, (found, events(config, "learner_started"))
    rewards = [row["reward/judge/mean"] for row in metrics(config)]
    assert fmean(rewards[-10:]) > fmean(rewards[:10]), "it went on to learn"


def test_a_node_that_will_be_taken_away_is_left_after_a_checkpoint_and_nothing_is_lost(
    world_model: Path, world_pairs: Path, tmp_path: Path, nodes: Nodes
) -> None:
    config = elastic_run(world_model, world_pairs, tmp_path / "run", nodes)
    nodes.add("b", role="learner")
    process = begin_sft(config)
    try:
        wait_for_attempt(config, 1, 2, process)
        leaving = nodes.node_id("b")
        nodes.drain("b", deadline_s=300)
        attempt = wait_for_attempt(config, 2, 1, process)
        (notice,) = events(config, "preempted")
        assert notice["node"] == leaving
        assert attempt["version"] == notice["step"], "what was learned before the notice is kept"
        (failure,) = events(config, "learner_failure")
        assert failure["restarted"]
        assert "Preempted" in failure["error"]
        wait_for_step(Path(config.cluster.run_dir), attempt["version"] + 60, process)
    finally:
        stop(process)
    assert_steps_follow(config)


def test_nodes_of_other_roles_are_no_room_for_learners(
    world_model: Path, world_pairs: Path, tmp_path: Path, nodes: Nodes
) -> None:
    config = elastic_run(world_model, world_pairs, tmp_path / "run", nodes)
    nodes.add("c", cpus=4, role="rollout")
    process = begin_sft(config)
    try:
        wait_for_attempt(config, 1, 1, process)
        reached = steps_of(config)[-1]
        until = time.monotonic() + 15  # several looks at the room
        while time.monotonic() < until or steps_of(config)[-1] < reached + 40:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.2)
        assert len(events(config, "learner_started")) == 1
    finally:
        stop(process)
