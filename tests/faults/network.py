"""Several hosts on one machine: network namespaces behind a switch, whose links can be cut.

    with Hosts() as hosts:
        hosts.add("a"); hosts.start_ray("a", cpus=1); hosts.cut("a"); hosts.heal("a")

Needs root and `ip` (iproute2). Processes and files stay shared; only the network is not.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

RAY = str(Path(sys.executable).with_name("ray"))
NETWORK = "10.77.0"
PORT = 6399
SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_grpc_client_keepalive_time_ms": "5000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}
"""Silent nodes are noticed within seconds; the same on every node and driver."""


def is_possible() -> bool:
    """Whether this process may make namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", "attune-try"], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", "attune-try"], capture_output=True, check=False)
    return made.returncode == 0


class Hosts:
    """Hosts named by letters, the first of them the head of a Ray cluster."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="hosts-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        """Of Ray, which cannot use one with a long path."""
        self.prefix = f"at{os.getpid() % 10_000}"
        self.switch = f"{self.prefix}-sw"
        self.hosts: list[str] = []
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        """Of the Ray cluster."""
        return f"{NETWORK}.1:{PORT}"

    def __enter__(self) -> "Hosts":
        _ip("netns", "add", self.switch)
        _ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "br0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            self.heal(host)
        for process in self.processes.values():
            family = [process.pid] if process.poll() is None else []
            for parent in [psutil.Process(pid) for pid in family]:
                for one in [parent, *parent.children(recursive=True)]:
                    if one.is_running():
                        one.kill()
            process.wait(30)
        for host in self.hosts:
            self._end_all(host)
            _ip("netns", "del", self._space(host))
        _ip("netns", "del", self.switch)
        self._folder.cleanup()

    def _end_all(self, host: str) -> None:
        """Ray's own processes leave their parent; whatever runs in the namespace is ours."""
        found = subprocess.run(
            ["ip", "netns", "pids", self._space(host)], capture_output=True, text=True, check=False
        )
        for pid in found.stdout.split():
            try:
                psutil.Process(int(pid)).kill()
            except psutil.NoSuchProcess:
                continue

    def _space(self, host: str) -> str:
        return f"{self.prefix}-{host}"

    def add(self, host: str) -> None:
        """A host with an address of its own, linked to the switch."""
        self.hosts.append(host)
        space, link = self._space(host), f"v{self.prefix}{host}"
        _ip("netns", "add", space)
        _ip("-n", space, "link", "set", "lo", "up")
        _ip("link", "add", "eth0", "netns", space, "type", "veth", "peer", "name", link,
            "netns", self.switch)  # fmt: skip
        number = len(self.hosts)
        _ip("-n", space, "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("-n", self.switch, "link", "set", link, "master", "br0")
        _ip("-n", self.switch, "link", "set", link, "up")

    def start_ray(self, host: str, *, cpus: int, **labels: str) -> None:
        """A Ray node on a host: the head on the first. It is started again whenever it ends, as a
        service manager does."""
        number = self.hosts.index(host) + 1
        place = (
            ["--head", "--port", str(PORT), "--include-dashboard", "false"]
            if number == 1
            else ["--address", self.address]
        )
        command = [
            RAY, "start", "--block", *place, "--node-ip-address", f"{NETWORK}.{number}",
            "--num-cpus", str(cpus), "--object-store-memory", "80000000",
            "--temp-dir", str(self.folder / host), "--disable-usage-stats",
        ]  # fmt: skip
        if labels:
            command += ["--labels", ",".join(f"{key}={value}" for key, value in labels.items())]
        log = self.folder / f"{host}.log"
        text = f"while true; do {' '.join(command)}; sleep 1; done"
        with log.open("wb") as output:
            self.processes[host] = subprocess.Popen(
                self.inside(host, ["bash", "-c", text]), stdout=output, stderr=subprocess.STDOUT,
                env=os.environ | SETTINGS,
            )  # fmt: skip
        deadline = time.monotonic() + 120
        while b"Ray runtime started" not in log.read_bytes():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)

    def inside(self, host: str, command: list[str]) -> list[str]:
        """A command that runs on a host."""
        return ["ip", "netns", "exec", self._space(host), *command]

    def host_of(self, pid: int) -> str:
        """Where a process runs."""
        found = subprocess.run(
            ["ip", "netns", "identify", str(pid)], capture_output=True, text=True, check=True
        )
        return found.stdout.strip().removeprefix(f"{self.prefix}-")

    def cut(self, host: str) -> None:
        """Nothing passes any more, and nobody is told."""
        _ip("-n", self.switch, "link", "set", f"v{self.prefix}{host}", "nomaster")

    def heal(self, host: str) -> None:
        """Undo `cut`."""
        _ip("-n", self.switch, "link", "set", f"v{self.prefix}{host}", "master", "br0")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
