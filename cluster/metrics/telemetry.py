"""telemetry/ROLE.jsonl of a run folder: what each process tells of itself, over time.

    {"time": 1764486000.2, "phase": "update"}                        when its phase changes
    {"time": 1764486001.0, "values": {"memory/host_mib": 431.2}}     every few seconds

One process writes one file, so lines never mix; who reads them disturbs nobody. With a process that
is started anew the file goes on. Keys are those of `cluster.metrics.table`.
"""

import json
import os
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cluster.metrics.table import IDLE
from cluster.tail import JsonlTail

FOLDER = "telemetry"
INTERVAL = "interval_s"
"""File of the folder that says how often processes tell; without it they tell nothing."""
ENDING, FINISHED, INTERRUPTED = "ending", "finished", "interrupted"
"""File of the folder in which the driver says so, and what it says."""
START = "start"
"""Phase with which a process begins; that of the one before it of this name is over."""


def switch_on(run_dir: str | Path, interval_s: float) -> None:
    """Let the processes of a run tell of themselves every `interval_s`, from their start on."""
    folder = Path(run_dir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ENDING).unlink(missing_ok=True)
    (folder / INTERVAL).write_text(f"{interval_s}\n")


def switch_off(run_dir: str | Path) -> None:
    """Have them tell nothing, from their next start on; what was told stays."""
    (Path(run_dir) / FOLDER / INTERVAL).unlink(missing_ok=True)


def say_end(run_dir: str | Path, *, finished: bool) -> None:
    """Tell whoever watches that the run is at its end, or only interrupted; not on a full disk."""
    with suppress(OSError):
        (Path(run_dir) / FOLDER / ENDING).write_text(FINISHED if finished else INTERRUPTED)


def ending_of(run_dir: str | Path) -> str | None:
    """FINISHED or INTERRUPTED; None while the run goes on."""
    try:
        return (Path(run_dir) / FOLDER / ENDING).read_text() or None
    except OSError:
        return None


def interval_of(run_dir: str | Path) -> float | None:
    """How often processes of this run tell, in seconds; None where they do not."""
    try:
        return float((Path(run_dir) / FOLDER / INTERVAL).read_text())
    except (OSError, ValueError):
        return None


def unix_now() -> float:
    """Unix seconds to the millisecond: when something was, for people. Decides nothing."""
    return round(time.time(), 3)


def append(run_dir: str | Path, role: str, **facts: Any) -> None:
    """Add a line to a role's file, in one write; where telemetry is off, or a disk full, none."""
    path = Path(run_dir) / FOLDER / f"{role}.jsonl"
    line = json.dumps({"time": unix_now(), **facts}) + "\n"
    try:
        if not (path.parent / INTERVAL).exists():
            return
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
    except OSError:
        pass


class Told(NamedTuple):
    """One line, with what follows from the phases before it.

    A tuple: a reader makes one for each of a hundred thousand lines.
    """

    time: float
    """Unix seconds."""
    phase: str | None
    """Where the line is a change of phase."""
    values: dict[str, float]


@dataclass(kw_only=True)
class PhaseClock:
    """How long a process spent in each phase."""

    phase: str = ""
    since: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _idle_before: float = 0.0
    _all_before: float = 0.0

    def enter(self, phase: str, now: float, last: float) -> None:
        """The process is in another phase from `now` on; `last`: when it told something before."""
        # One that begins is another process than the one before, which ended some time after that.
        self._count(min(last, now) if phase == START else now)
        self.phase, self.since = phase, now

    def _count(self, now: float) -> None:
        if self.phase:
            self.seconds[self.phase] += max(0.0, now - self.since)
        self.since = now

    def read(self, now: float) -> dict[str, float]:
        """Seconds by phase until `now`, and the idle share since the last reading."""
        if not self.phase:
            return {}
        self._count(now)
        idle = sum(seconds for phase, seconds in self.seconds.items() if phase in IDLE)
        in_all = sum(self.seconds.values())
        values = {f"phase_seconds/{phase}": seconds for phase, seconds in self.seconds.items()}
        if in_all > self._all_before:
            values["idle_share"] = (idle - self._idle_before) / (in_all - self._all_before)
        self._idle_before, self._all_before = idle, in_all
        return values


class RoleTail:
    """The lines of one role, as they come."""

    def __init__(self, path: Path) -> None:
        self.role = path.stem
        self.tail = JsonlTail(path)
        self.clock = PhaseClock()
        self.last = 0.0
        """Unix second of the newest line."""

    def read(self) -> list[Told]:
        """New lines; those of values also hold `phase_seconds/...` and `idle_share`."""
        told = []
        for row in self.tail.read():
            now, phase, values = row.get("time"), row.get("phase"), row.get("values")
            if not isinstance(now, int | float):
                continue
            if isinstance(phase, str):
                self.clock.enter(phase, now, self.last)
                told.append(Told(time=now, phase=phase, values={}))
            elif isinstance(values, dict):
                own = {str(k): float(v) for k, v in values.items() if isinstance(v, int | float)}
                told.append(Told(time=now, phase=None, values=own | self.clock.read(now)))
            self.last = now
        return told


class TelemetryTail:
    """All roles of a run, as they come; processes may join at any time."""

    def __init__(self, run_dir: str | Path) -> None:
        self.folder = Path(run_dir) / FOLDER
        self.roles: dict[str, RoleTail] = {}

    def read(self) -> dict[str, list[Told]]:
        """Role -> new lines."""
        for path in self.folder.glob("*.jsonl"):
            if path.stem not in self.roles:
                self.roles[path.stem] = RoleTail(path)
        return {role: told for role, tail in self.roles.items() if (told := tail.read())}
