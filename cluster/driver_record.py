"""driver.json of a run folder: which process drives the run, and the Ray it started for it.

A driver that was killed leaves its Ray behind for a minute or more; whoever goes on with the run
has to know those processes.
"""

import json
import os
import socket
from pathlib import Path
from typing import Any

import psutil

from cluster.files import replace_text

FILE = "driver.json"
BOOT = Path("/proc/sys/kernel/random/boot_id")


def record_driver(run_dir: str | Path, own_ray: list[int]) -> None:
    """Note this process, and the processes of a Ray that it started itself."""
    facts = {
        "host": socket.gethostname(),
        "driver": _mark(os.getpid()),
        "ray": [mark for pid in own_ray if (mark := _mark(pid))],
    }
    replace_text(Path(run_dir) / FILE, json.dumps(facts))


def forget_driver(run_dir: str | Path) -> None:
    """The run is driven by nobody any more."""
    (Path(run_dir) / FILE).unlink(missing_ok=True)


def driver_lives(run_dir: str | Path) -> int | None:
    """The process that drives the run, where it lives on this machine and is not this one."""
    facts = _facts(run_dir)
    process = _process(facts.get("driver")) if facts.get("host") == socket.gethostname() else None
    return process.pid if process is not None and process.pid != os.getpid() else None


def driver_host(run_dir: str | Path) -> str | None:
    """The other machine whose process drives the run, or did until it died; None without one."""
    host = _facts(run_dir).get("host")
    return host if isinstance(host, str) and host != socket.gethostname() else None


def left_behind(run_dir: str | Path) -> list[psutil.Process]:
    """Living processes of the Ray that a dead driver of this machine had started for the run."""
    facts = _facts(run_dir)
    if facts.get("host") != socket.gethostname() or driver_lives(run_dir):
        return []
    found = [_process(mark) for mark in facts.get("ray", [])]
    return [process for process in found if process is not None]


def _facts(run_dir: str | Path) -> dict[str, Any]:
    try:
        facts = json.loads((Path(run_dir) / FILE).read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _mark(pid: int) -> dict[str, Any] | None:
    """A process id and when that process began: ids are given out again.

    In ticks since the machine started, and which start that was: clocks jump.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        began = int(stat.rpartition(")")[2].split()[19])
        return {"pid": pid, "began": began, "boot": BOOT.read_text().strip()}
    except OSError:
        return None


def _process(mark: Any) -> psutil.Process | None:
    """The process of a mark, where it lives."""
    if not isinstance(mark, dict) or mark != _mark(mark.get("pid", -1)):
        return None
    try:
        process = psutil.Process(mark["pid"])
        return process if process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None
