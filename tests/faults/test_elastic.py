"""Engines go 1 - 3 - 1 by autoscaling while a run goes on, on nodes that come and go.

The learner waits for replies at first, so engines are added; then the judge becomes slow, engines
have little to do, and leave. What decides is the collector's queue and the learner's waiting, as in
any run.
"""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from cluster.events import read_events
from tests.faults.accounting import stopped
from tests.faults.autoscaling import SETTINGS, Autoscaled, nodes_alive
from tests.faults.injection import until, wait_for_steps
from tests.integration.conftest import *  # noqa: F403 - its models and prompts
from tests.integration.loop import tiny_run
from tests.integration.processes import read_steps
from tests.integration.test_run import start

ATTUNE = str(Path(sys.executable).with_name("attune"))
pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]


JUDGE = """
import os, time

def reward(prompts, replies, rows):
    if os.path.exists({slow!r}):
        time.sleep(4)
    return [reply.count(' ') / 24 - 0.1 * reply.count('.') for reply in replies]
"""


def live_engines(run: Path) -> int:
    """Counted from what the run says of itself."""
    kinds = {"engine_joined": 1, "engine_replaced": 1, "engine_lost": -1, "engine_released": -1}
    return sum(kinds.get(event["kind"], 0) for event in read_events(run))


def test_engines_go_from_one_to_three_and_back_by_autoscaling(
    world_model: Path, world_prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    with Autoscaled({"rollout": 3}) as cluster:
        config = tiny_run(
            world_model, world_prompts, tmp_path / "run", f"cluster.address={cluster.address}",
            "algorithm.num_steps=100000", "algorithm.max_staleness=0", "data.prompts_per_step=16",
            "cluster.rollout.labels={role: rollout}", "cluster.rollout.min_engines=1",
            "cluster.rollout.max_engines=3", "cluster.rollout.groups_per_engine=2",
            "cluster.rollout.idle_s=2", "cluster.checkpoint.interval=20",
        )  # fmt: skip
        slow = tmp_path / "slow"
        (tmp_path / "judge.py").write_text(JUDGE.format(slow=str(slow)))
        run = tmp_path / "run"
        process = start(config)
        try:
            until("three engines", lambda: live_engines(run) == 3, process)
            assert nodes_alive(cluster.address, "rollout") == 3
            wait_for_steps(run, read_steps(run)[-1] + 3, process)
            slow.touch()
            until("one engine again", lambda: live_engines(run) == 1, process)
            until("one node", lambda: nodes_alive(cluster.address, "rollout") == 1, process)
            slow.unlink()
            wait_for_steps(run, read_steps(run)[-1] + 3, process)
            found = stopped(config, process)
        finally:
            process.kill()
        assert found.are_right, (found, read_events(run))


def test_engines_are_released_and_added_by_hand(
    world_model: Path, world_prompts: Path, tmp_path: Path
) -> None:
    config = tiny_run(
        world_model, world_prompts, tmp_path / "run", "algorithm.num_steps=100000",
        "algorithm.max_staleness=1", "cluster.rollout.num_engines=2",
        "cluster.checkpoint.interval=50",
    )  # fmt: skip
    run = tmp_path / "run"
    process = start(config)
    try:
        until("two engines", lambda: live_engines(run) == 2, process)
        wait_for_steps(run, 2, process)
        for engines in (1, 2):
            subprocess.run(
                [ATTUNE, "scale", str(run), str(engines)], check=True, capture_output=True
            )
            until(f"{engines} engines", partial(_has, run, engines), process)
            wait_for_steps(run, read_steps(run)[-1] + 3, process)
        found = stopped(config, process)
    finally:
        process.kill()
    assert found.are_right, (found, read_events(run))
    assert found.discarded == 0


def _has(run: Path, engines: int) -> bool:
    return live_engines(run) == engines
