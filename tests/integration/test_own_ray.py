"""A Ray that a run starts for itself: token on, on loopback alone, and ended by SIGTERM."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from configs.load import to_yaml
from configs.schema import RunConfig
from tests.integration.loop import tiny_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import psutil
from cluster.auth import ensure_token
ensure_token()
from cluster.signals import stop_on_sigterm
stop_on_sigterm()
import ray
from cluster.runtime import ray_session
from configs.load import load_config

config = load_config(sys.argv[1])
try:
    with ray_session(config):
        @ray.remote(num_cpus=0)
        class Worker:
            def __init__(self): self.address = ray.util.get_node_ip_address()
            def ping(self): return self.address
        worker = Worker.remote()
        address = ray.get(worker.ping.remote(), timeout=60)
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        heard = [
            [connection.laddr.ip, process.name()]
            for process in family
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        driver = json.loads((Path(config.cluster.run_dir) / "driver.json").read_text())
        print(json.dumps({
            "address": address,
            "heard": heard,
            "mode": os.environ["RAY_AUTH_MODE"],
            "has_token": bool(os.environ["RAY_AUTH_TOKEN"]),
            "driver": driver["driver"]["pid"] == os.getpid(),
            "own_ray": [psutil.Process(one["pid"]).name() for one in driver["ray"]],
        }), flush=True)
        signal.raise_signal(signal.SIGTERM)
        print("went on")
except KeyboardInterrupt:
    is_free = not Path(config.cluster.run_dir, "driver.json").exists()
    print("interrupted", not ray.is_initialized(), is_free)
"""
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


def run_script(
    script: str, config: RunConfig, folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """A driver of its own process, given the run's YAML."""
    (folder / "run.yaml").write_text(to_yaml(config))
    (folder / "script.py").write_text(script)
    return subprocess.run(
        [sys.executable, str(folder / "script.py"), str(folder / "run.yaml")],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def test_it_asks_for_a_token_listens_on_loopback_alone_and_ends_on_sigterm(
    world_model: Path, world_prompts: Path, tmp_path: Path
) -> None:
    config = tiny_run(world_model, world_prompts, tmp_path / "run", "cluster.dashboard=true")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")
    }
    result = run_script(SCRIPT, config, tmp_path, environment | {"HOME": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    first, *rest = [line for line in result.stdout.splitlines() if line.strip()]
    found = json.loads(first)
    assert found["mode"] == "token"
    assert found["has_token"]
    assert found["address"] == "127.0.0.1"
    assert len(found["heard"]) >= 5, "head, raylet, agents, workers: less shows nothing"
    assert [one for one in found["heard"] if one[0] not in LOOPBACK] == []
    assert found["driver"]
    assert {"raylet", "gcs_server"} <= set(found["own_ray"])
    assert sum("Agent" in name for name in found["own_ray"]) == 2, found["own_ray"]
    assert rest == ["interrupted True True"]


LATE = """
import json, os, signal, sys, threading, time
import psutil
from cluster.runtime import ray_session
from configs.load import load_config

stopped = []
def stop_the_first():
    while not stopped:
        for process in psutil.Process().children(recursive=True):
            if process.name() == "raylet":
                process.suspend()
                stopped.append(process)
                return
        time.sleep(0.005)

threading.Thread(target=stop_the_first, daemon=True).start()
with ray_session(load_config(sys.argv[1])):
    import ray
    raylets = [p for p in psutil.Process().children(recursive=True) if p.name() == "raylet"]
    print(json.dumps({
        "nodes": sum(node["Alive"] for node in ray.nodes()),
        "was_ended": not stopped[0].is_running() or stopped[0].status() == psutil.STATUS_ZOMBIE,
        "raylets": sum(p.status() != psutil.STATUS_ZOMBIE for p in raylets),
    }), flush=True)
"""


@pytest.mark.faults
def test_one_that_does_not_come_up_in_time_is_started_once_more(
    world_model: Path, world_prompts: Path, tmp_path: Path
) -> None:
    config = tiny_run(world_model, world_prompts, tmp_path / "run")
    result = run_script(LATE, config, tmp_path, os.environ)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"nodes": 1, "was_ended": True, "raylets": 1}
    assert "once more" in result.stderr
