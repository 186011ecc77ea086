"""A Ray cluster of several nodes on this machine, each a process tree that can be ended alone.

with Nodes(folder) as nodes:
    nodes.add("a", role="learner"); nodes.kill("a"); nodes.drain("b", deadline_s=60)
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.integration.processes import free_port

RAY = str(Path(sys.executable).with_name("ray"))
SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}
"""Dead nodes are noticed in seconds, and ended ones do not drain first."""


class Nodes:
    """A head without room for learners, and nodes that come and go."""

    def __init__(self, folder: Path, *, head_cpus: int = 2) -> None:
        self.folder, self.head_cpus = folder, head_cpus
        self.port = free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        """What drivers and nodes join."""
        return f"{self._host()}:{self.port}"

    def __enter__(self) -> "Nodes":
        self._start("head", self.head_cpus, {}, "--head", "--port", str(self.port),
                    "--include-dashboard", "false", "--temp-dir", str(self.folder))  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        for name in [*self.processes][::-1]:
            self.kill(name)

    def add(self, name: str, *, cpus: int = 1, **labels: str) -> None:
        """Another node."""
        self._start(name, cpus, {"node": name, **labels}, "--address", self.address)

    def kill(self, name: str) -> None:
        """End a node with all its processes, as if its power went."""
        process = self.processes.pop(name)
        family = [psutil.Process(process.pid)] if process.poll() is None else []
        family += family[0].children(recursive=True) if family else []
        for one in family:
            try:
                one.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        process.wait(30)

    def drain(self, name: str, deadline_s: int) -> None:
        """Say that a node will be taken away, as a cloud does."""
        subprocess.run(
            [RAY, "drain-node", "--address", self.address, "--node-id", self.node_id(name),
             "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot",
             "--deadline-remaining-seconds", str(deadline_s)],
            check=True, capture_output=True, env=os.environ | SETTINGS, timeout=120,
        )  # fmt: skip

    def node_id(self, name: str) -> str:
        """Ray's own name of a node."""
        code = (
            "import json, ray; "
            f"ray.init(address={self.address!r}, logging_level='ERROR', log_to_driver=False); "
            "print(json.dumps({n['Labels'].get('node'): n['NodeID'] "
            "for n in ray.nodes() if n['Alive']}))"
        )
        result = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True,
            env=os.environ | SETTINGS, timeout=120,
        )  # fmt: skip
        return json.loads(result.stdout.splitlines()[-1])[name]

    def _host(self) -> str:
        # Ray replaces a loopback address by the host's own, so begin with that.
        import ray

        return ray.util.get_node_ip_address()

    def _start(self, name: str, cpus: int, labels: dict[str, str], *options: str) -> None:
        log = self.folder.parent / f"node-{name}.log"
        command = [
            RAY, "start", "--block", "--num-cpus", str(cpus), "--object-store-memory", "100000000",
            "--disable-usage-stats", *options,
        ]  # fmt: skip
        if labels:
            command += ["--labels", ",".join(f"{key}={value}" for key, value in labels.items())]
        with log.open("wb") as file:
            self.processes[name] = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | SETTINGS
            )
        deadline = time.monotonic() + 120
        while not re.search(rb"Ray runtime started", log.read_bytes()):
            assert self.processes[name].poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
