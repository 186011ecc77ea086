"""A Ray cluster whose autoscaler brings nodes and takes them away, all on this machine.

    with Autoscaled({"rollout": 3}) as cluster:
        ...  # cluster.address; actors with label role=rollout bring up to three nodes

Autoscaler v2 with Ray's provider of local nodes. Nodes without work go after some seconds.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import ray
import yaml

from tests.integration.processes import free_port

RAY = str(Path(sys.executable).with_name("ray"))
HEAD_ID = "f" * 51 + "00000"
"""What the provider takes for the head's node id."""
IDLE_MINUTES = 0.1
SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}
HEAD_SETTINGS = {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID, "RAY_CLOUD_INSTANCE_ID": HEAD_ID}


class Autoscaled:
    """A head, and kinds of nodes that come when they are asked for."""

    def __init__(self, kinds: dict[str, int], *, head_cpus: int = 4) -> None:
        """`kinds`: role -> most nodes of it, each with one CPU and the label role=ROLE."""
        self._folder = TemporaryDirectory(prefix="scaled-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        """Of Ray, which cannot use one with a long path."""
        self.kinds, self.head_cpus = kinds, head_cpus
        self.port = free_port()
        self.address = f"{ray.util.get_node_ip_address()}:{self.port}"

    def __enter__(self) -> "Autoscaled":
        file = self.folder / "autoscaling.yaml"
        file.write_text(yaml.safe_dump(self._config()))
        log = self.folder / "head.log"
        command = [
            RAY, "start", "--head", "--block", "--port", str(self.port), "--disable-usage-stats",
            "--num-cpus", str(self.head_cpus), "--object-store-memory", "100000000",
            "--include-dashboard", "false", "--temp-dir", str(self.folder / "ray"),
            "--autoscaling-config", str(file),
        ]  # fmt: skip
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT,
                env=os.environ | SETTINGS | HEAD_SETTINGS,
            )  # fmt: skip
        deadline = time.monotonic() + 120
        while b"Ray runtime started" not in log.read_bytes():
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        # Nodes are children of the head's autoscaler, which is one of these.
        is_there = self.process.poll() is None
        processes = psutil.Process(self.process.pid).children(recursive=True) if is_there else []
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        _, alive = psutil.wait_procs(processes, timeout=10)
        for process in alive:
            process.kill()
        self._folder.cleanup()

    def _config(self) -> dict[str, object]:
        kinds = {
            role: {
                "resources": {"CPU": 1},
                "labels": {"role": role},
                "node_config": {},
                "min_workers": 0,
                "max_workers": most,
            }
            for role, most in self.kinds.items()
        }
        head = {"resources": {"CPU": self.head_cpus}, "node_config": {}, "max_workers": 0}
        return {
            "cluster_name": "attune-test",
            "max_workers": sum(self.kinds.values()),
            "idle_timeout_minutes": IDLE_MINUTES,
            "provider": {
                "type": "external",
                "module": "ray.autoscaler._private.fake_multi_node.node_provider"
                ".FakeMultiNodeProvider",
                "gcs_address": self.address,
                "head_node_id": HEAD_ID,
                "launch_multiple": True,
            },
            # Ray's defaults for an external provider lack these.
            "setup_commands": [], "head_setup_commands": [], "worker_setup_commands": [],
            "cluster_synced_files": [],
            "head_node_type": "ray.head.default",
            "available_node_types": {"ray.head.default": head, **kinds},
        }  # fmt: skip


def nodes_alive(address: str, role: str) -> int:
    """Living nodes of a kind, as a client of its own sees them."""
    code = (
        "import ray; "
        f"ray.init(address={address!r}, logging_level='ERROR', log_to_driver=False); "
        f"print(sum(n['Alive'] and n['Labels'].get('role') == {role!r} for n in ray.nodes()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True,
        env=os.environ | SETTINGS, timeout=120,
    )  # fmt: skip
    return int(result.stdout.splitlines()[-1])
