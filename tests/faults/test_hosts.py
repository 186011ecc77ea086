"""Weights are synced across three hosts; one is cut off, the run goes on, and it comes back."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cluster.events import read_events
from tests.faults.accounting import stopped
from tests.faults.injection import (
    pid_of,
    until,
    wait_for_event,
    wait_for_phase,
    wait_for_steps,
)
from tests.faults.network import SETTINGS, Hosts, is_possible
from tests.integration.conftest import *  # noqa: F403 - its models and prompts
from tests.integration.loop import tiny_run
from tests.integration.processes import read_steps
from tests.integration.test_run import command

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not is_possible(), reason="needs root and iproute2 for namespaces"),
]


def test_a_host_is_cut_off_in_sync_and_in_sampling_and_comes_back(
    world_model: Path, world_prompts: Path, tmp_path: Path
) -> None:
    with Hosts() as hosts:
        for host in "hab":
            hosts.add(host)
        hosts.start_ray("h", cpus=4)
        hosts.start_ray("a", cpus=1, role="rollout")
        hosts.start_ray("b", cpus=1, role="rollout")
        config = tiny_run(
            world_model, world_prompts, tmp_path / "run", f"cluster.address={hosts.address}",
            "algorithm.num_steps=100000", "algorithm.max_staleness=1",
            "cluster.rollout.num_engines=2", "cluster.rollout.labels={role: rollout}",
            "cluster.checkpoint.interval=50",
        )  # fmt: skip
        run = tmp_path / "run"
        process = subprocess.Popen(
            hosts.inside("h", command(config)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env=os.environ | SETTINGS,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        try:
            wait_for_steps(run, 3, process)
            places = {name: hosts.host_of(pid_of(run, name)) for name in ("engine-0", "engine-1")}
            assert set(places.values()) == {"a", "b"}, places
            assert read_gaps(run)[-1] <= 1e-4, "weights were synced across hosts"

            for phase in ("sync", "sampling"):
                wait_for_phase(run, phase, process)
                cut = time.time()
                hosts.cut("b")
                lost = wait_for_event(run, "engine_lost", process, cut)
                seconds = float(lost["time"]) - cut  # pyright: ignore[reportArgumentType]
                assert seconds < 45, f"{seconds} s; 15 s on a machine of its own"
                reached = read_steps(run)[-1]
                wait_for_steps(run, reached + 3, process)
                hosts.heal("b")
                healed = time.time()
                wait_for_event(run, "engine_replaced", process, healed)
                print(f"MEASURED cut in {phase}: lost after {seconds:.1f} s, "
                      f"back {time.time() - healed:.1f} s after the heal")  # fmt: skip
                until("two engines", lambda: engines_in_sync(run) == 2, process)
                wait_for_steps(run, read_steps(run)[-1] + 3, process)
            found = stopped(config, process)
        finally:
            process.kill()
        assert found.are_right, (found, read_events(run))
        assert found.discarded == 0, "the learner was never cut off"


def metrics(run: Path) -> list[dict]:
    """Of whole lines."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def read_gaps(run: Path) -> list[float]:
    """Probe gaps, step by step."""
    return [row["probe/gap"] for row in metrics(run)]


def engines_in_sync(run: Path) -> int:
    """Engines that took part in the last sync."""
    return int(metrics(run)[-1]["sync/engines"])
