"""A thread of each process of a run that tells, every few seconds, what it holds and does."""

import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from cluster.metrics.telemetry import append, interval_of

logger = logging.getLogger(__name__)

MIB = 1 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")
EARLY = (0, 1, 2, 4, 8)
CHILDREN_EVERY = 15
"""Ticks at which new children are looked for: early ones, then every so many. A look reads the
whole process table."""

Facts = Callable[[], Mapping[str, float]]


def no_facts() -> dict[str, float]:
    """Of a process that has nothing to tell but its memory."""
    return {}


class Pulse:
    """Tells of this process in `telemetry/ROLE.jsonl`, if the run wants that.

    >>> # pulse = Pulse(run_dir, "engine-0", engine.live_facts, with_children=True); pulse.close()
    """

    def __init__(
        self, run_dir: str, role: str, facts: Facts = no_facts, *, with_children: bool = False
    ) -> None:
        """`with_children`: count the memory of child processes too, such as an engine's core."""
        self.run_dir, self.role, self.facts = run_dir, role, facts
        self.with_children = with_children
        self._stopped = threading.Event()
        self._children: list[psutil.Process] = []
        self._tick = 0
        interval_s = interval_of(run_dir)
        if interval_s is not None:
            threading.Thread(
                target=self._run, args=(interval_s,), daemon=True, name="pulse"
            ).start()

    def close(self) -> None:
        """Tell nothing more."""
        self._stopped.set()

    def _run(self, interval_s: float) -> None:
        is_well = True
        while not self._stopped.wait(interval_s):
            try:
                append(self.run_dir, self.role, values=self._values())
            except Exception:  # a help for people, never a reason to stop
                if is_well:
                    logger.warning("%s could not tell of itself", self.role, exc_info=True)
                is_well = False

    def _values(self) -> dict[str, float]:
        pids = [os.getpid(), *self._child_pids()]
        values = {"memory/host_mib": round(sum(map(private_mib, pids)), 1)}
        device = device_mib(pids)
        if device is not None:
            values["memory/device_mib"] = round(device, 1)
        told = {name: float(f"{value:.6g}") for name, value in self.facts().items()}
        return values | told

    def _child_pids(self) -> list[int]:
        is_due = self._tick in EARLY or self._tick % CHILDREN_EVERY == 0
        if self.with_children and is_due:
            self._children = psutil.Process().children(recursive=True)
        self._tick += 1
        return [child.pid for child in self._children]


def private_mib(pid: int) -> float:
    """Memory of a process without what it shares (files, the object store); 0 once it is gone."""
    with suppress(OSError, ValueError, IndexError):
        _, resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[:3]
        return (int(resident) - int(shared)) * PAGE / MIB
    return 0.0


def device_mib(pids: Sequence[int]) -> float | None:
    """What processes hold on this node's GPUs; None without one, or where torch is not loaded.

    By the driver's account, which knows of an engine's core in a process of its own. It counts by
    the host's numbers of processes: in a container that has others, by torch's, of this one alone.
    """
    torch = sys.modules.get("torch")
    if torch is None or torch.version.cuda is None:
        return None
    held = _by_driver(set(pids))
    if held:
        return held / MIB
    return torch.cuda.memory_reserved() / MIB if torch.cuda.is_initialized() else None


def _by_driver(pids: set[int]) -> int:
    """Bytes; 0 where the driver knows nothing of these processes, or there is none."""
    try:
        pynvml: Any = import_module("pynvml")  # comes with the CUDA packages
    except ImportError:
        return 0
    held = 0
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(index)
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(device):
                held += (process.usedGpuMemory or 0) * (process.pid in pids)
    return held
