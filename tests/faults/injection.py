"""Finding the processes of a run by role and phase, and doing them harm."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from cluster.events import read_events
from cluster.phases import phases
from tests.integration.processes import read_steps

PATIENCE_S = 400.0
"""Longest wait for anything here, on a machine that is busy with other things as well."""
IS_PROCESS = re.compile(r" is process (\d+)$")


def until(
    what: str,
    found: Callable[[], object],
    process: subprocess.Popen[str] | None,
    every_s: float = 0.1,
) -> None:
    """Poll until something is found; fails once the run's process has ended without it."""
    deadline = time.monotonic() + PATIENCE_S
    while not found():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"the run ended before {what}: {process.communicate()[0]}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {PATIENCE_S:.0f} s")
        time.sleep(every_s)


def pid_of(run_dir: Path, role: str) -> int:
    """Of the process that has this role at the moment, as its log says."""
    lines = (run_dir / "logs" / f"{role}.log").read_text().splitlines()
    found = [match[1] for line in lines if (match := IS_PROCESS.search(line))]
    return int(found[-1])


def core_of(run_dir: Path, engine: str) -> int:
    """The engine core of an engine: the child in which vLLM computes."""
    children = psutil.Process(pid_of(run_dir, engine)).children(recursive=True)
    cores = [child.pid for child in children if "EngineCore" in " ".join(child.cmdline())]
    assert len(cores) == 1, [child.cmdline() for child in children]
    return cores[0]


PHASES: dict[str, Callable[[dict[str, str]], bool]] = {
    "sampling": lambda now: now.get("collector") == "sample",
    "scoring": lambda now: now.get("collector") == "score",
    "update": lambda now: now.get("learner-0") == "update",
    "sync": lambda now: now.get("learner-0") == "sync",
    "checkpoint": lambda now: now.get("learner-0") == "checkpoint",
}


def wait_for_phase(run_dir: Path, phase: str, process: subprocess.Popen[str]) -> None:
    """Until the run is in one of the five phases."""
    until(f"phase {phase}", lambda: PHASES[phase](phases(run_dir)), process, every_s=0.002)


def wait_for_steps(run_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Until the learner has finished a step."""
    until(f"step {step}", lambda: read_steps(run_dir)[-1:] >= [step], process)


def wait_for_event(
    run_dir: Path, kind: str, process: subprocess.Popen[str], after: float = 0.0, **facts: object
) -> dict[str, object]:
    """The first event of a kind after a time (unix seconds) with these facts."""
    found: list[dict[str, object]] = []

    def look() -> bool:
        found[:] = [
            event
            for event in read_events(run_dir)
            if event["kind"] == kind
            and event["time"] >= after
            and all(event.get(name) == value for name, value in facts.items())
        ]
        return bool(found)

    until(f"event {kind}", look, process)
    return found[0]


def stop_process(pid: int) -> None:
    """Let a process hang: it keeps its connections and answers nothing."""
    os.kill(pid, signal.SIGSTOP)


def kill_process(pid: int) -> None:
    """End a process at once."""
    os.kill(pid, signal.SIGKILL)
