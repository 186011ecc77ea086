"""What watching takes, process by process, of a run where all of it is on.

Stacks of the run's processes are looked at a hundred times a second (py-spy): which share of them
is in code that is there for metrics alone. That share of the process's CPU time counts, and of
those that only watch all of it. A tenth of a per cent shows, where step times with and without
differ by more than a per cent by themselves.
"""

import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from tests.bench.switched import FIRST, SAME_WORK, run_of_demo_size
from tests.bench.watching import WATCHERS
from tests.integration.processes import wait_for_step
from tests.integration.test_run import start

SECONDS, RATE = 60, 100
METRICS = re.compile(
    r"v1/metrics/|engine_stats\.py|cluster/metrics/|_update_stats_from|make_stats|util/metrics\.py"
)
"""Frames that are there for metrics alone, vLLM's and ours."""
LOOKED_INTO = (
    "attune run", "ray::LoggedEngine", "VLLM::EngineCore", "ray::Collector", "ray::RayTrainWorker",
    "ray::ReferenceWorker", "ray::RewardWorker",
)  # fmt: skip


def watching_shares(folder: Path) -> dict[str, Any]:
    """Cores that watching takes, by process."""
    config = run_of_demo_size(
        folder, 500, "cluster.dashboard=true", "cluster.checkpoint.interval=1000",
        "cluster.metrics.loggers.tensorboard={}", *SAME_WORK, num_prompts=1,
    )  # fmt: skip
    run = start(config)
    reader = threading.Thread(target=run.communicate)
    reader.start()
    try:
        wait_for_step(folder / "run", FIRST, run)
        family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
        named = {" ".join(one.cmdline()): one for one in family}
        watchers = [one for words, one in named.items() if any(w in words for w in WATCHERS)]
        assert len(watchers) == len(WATCHERS)
        before, since = _cpu_s(watchers), time.monotonic()
        taken = {
            name: _Look(next(one.pid for words, one in named.items() if name in words), folder)
            for name in LOOKED_INTO
        }
        cores = {name: look.end() for name, look in taken.items()}
        cores["monitor and pages"] = (_cpu_s(watchers) - before) / (time.monotonic() - since)
    finally:
        run.terminate()
        reader.join()
    total = sum(cores.values())
    return {
        "cores": {name: round(value, 5) for name, value in cores.items()},
        "cores_in_all": round(total, 5),
        "share_of_machine": round(total / (psutil.cpu_count() or 1), 5),
        "seconds": SECONDS,
    }


def _cpu_s(processes: list[psutil.Process]) -> float:
    times = [one.cpu_times() for one in processes]
    return sum(t.user + t.system for t in times)


class _Look:
    """py-spy at one process, for some time."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.file, self.of, self.since = (
            folder / f"{pid}.stacks",
            psutil.Process(pid),
            time.monotonic(),
        )
        self.before = _cpu_s([self.of])
        spy = str(Path(sys.executable).with_name("py-spy"))
        words = [
            spy, "record", "-p", str(pid), "--nonblocking", "-d", str(SECONDS), "-r", str(RATE),
            "-f", "raw", "-o", str(self.file), "--full-filenames",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def end(self) -> float:
        """Cores that code for metrics took."""
        said = self.process.communicate()[1]
        assert self.process.returncode == 0, said
        cores = (_cpu_s([self.of]) - self.before) / (time.monotonic() - self.since)
        found = total = 0
        for line in self.file.read_text().splitlines():
            stack, count = line.rsplit(" ", 1)
            total += int(count)  # threads that run or want to
            found += int(count) * bool(METRICS.search(stack))
        return cores * found / max(total, 1)
