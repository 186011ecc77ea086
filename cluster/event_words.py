"""Events of a run in a few words, for people who watch it."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.events import FILE

Event = Mapping[str, Any]

ROUTINE = frozenset({"checkpoint_saved", "engine_placed", "engine_joined", "learner_started"})
"""Of every run; a learner that started again is worth a word."""
LOOK_S = 1.0
"""Between two looks at the file."""
_WORDS: dict[str, Callable[[Event], str]] = {
    "checkpoint_torn": lambda e: (
        f"the checkpoint of step {e['step']} is torn, an older one is used"
    ),
    "collector_replaced": lambda e: "collector replaced",
    "collector_stuck": lambda e: f"collector silent for {e['seconds']:.0f} s",
    "engine_added": lambda e: f"{e['engine']} added: {e['waiting']} groups wait",
    "engine_leaving": lambda e: f"{e['engine']} leaves: {e['reason']}",
    "engine_lost": lambda e: f"{e['engine']} lost: {e['reason']}",
    "engine_released": lambda e: f"{e['engine']} has left",
    "engine_replaced": lambda e: f"{e['replaces']} replaced after {e['after_s']:.0f} s",
    "engine_withdrawn": lambda e: f"{e['engine']} withdrawn: {e['reason']}",
    "failure": lambda e: f"failed: {e['error']}",
    "judge_failed": lambda e: f"judge {e['judge']} failed: {e['reason']}",
    "judge_replaced": lambda e: f"judge {e['judge']} replaced: {e['reason']}",
    "learner_failure": lambda e: f"learner failed: {e['error']}",
    "learner_resized": lambda e: f"learner: {e['before']} -> {e['after']} ranks",
    "learner_started": lambda e: f"learner goes on after step {e['version']}",
    "logger_failed": lambda e: f"logger {e['logger']} failed: {e['error']}",
    "logger_recovered": lambda e: f"logger {e['logger']} is back",
    "preempted": lambda e: "learner stopped before its node is taken away",
    "profile_failed": lambda e: f"no profile of learner-{e['rank']}: {e['reason']}",
    "profile_written": lambda e: f"profile of learner-{e['rank']} written",
    "rank_stuck": lambda e: f"learner-{e['rank']} stuck in {e['phase']}",
    "seat_empty": lambda e: f"{e['seat']} stays empty for {e['seconds']:.0f} s: {e['reason']}",
}


def words(event: Event) -> str:
    """Such as `engine-0 replaced after 7 s`; empty for what happens in every run."""
    kind = str(event.get("kind", ""))
    went_on = kind == "learner_started" and event.get("attempt", 1) > 1
    if kind in ROUTINE and not went_on:
        return ""
    try:
        return " ".join(_WORDS[kind](event).split())
    except (KeyError, TypeError, ValueError):  # of another version, or without a fact
        return kind.replace("_", " ")


class EventWatch:
    """What was last worth a word since this object was made; looks at the file now and then."""

    def __init__(self, run_dir: str | Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = Path(run_dir) / FILE, clock
        self._position = self._size()
        self._looked_at = clock()
        self._last: tuple[float, str] | None = None
        self._count = 0

    def text(self) -> str:
        """The last event and how long ago it was; empty where there was none."""
        now = self._clock()
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self._look(now)
        if self._last is None:
            return ""
        ago = max(0.0, now - self._last[0])
        age = f"{ago:.0f} s" if ago < 60 else f"{ago / 60:.0f} min"
        others = f", {self._count} events" if self._count > 1 else ""
        return f"{self._last[1]} ({age} ago{others})"

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:
            return 0

    def _look(self, now: float) -> None:
        if self._size() <= self._position:
            return
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                whole, newline, _ = file.read().rpartition(b"\n")
        except OSError:
            return
        self._position += len(whole) + len(newline)
        for line in whole.splitlines():
            try:
                said = words(json.loads(line))
            except (ValueError, TypeError, AttributeError):  # torn
                continue
            if said:
                self._last, self._count = (now, said), self._count + 1
