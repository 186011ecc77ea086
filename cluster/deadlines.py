"""Waiting with an end: calls whose errors name the peer, and work that must not hang."""

import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

HUNG = 75
"""Exit code of a process that ended itself because a piece of work did not end."""
LOG_LINES = 3
LAST_WORDS_S = 10.0
"""What a process that is about to end itself may take to say why."""


def late(peer: str, phase: str, deadline_s: float, run_dir: str | Path, setting: str) -> str:
    """What is said of a peer that did not answer in time."""
    return (
        f"{peer} did not answer within {deadline_s:.0f} s (phase: {phase}); raise {setting} if it "
        f"needs longer{log_end(run_dir, peer)}"
    )


def log_end(run_dir: str | Path, role: str) -> str:
    """What the log of a role ends with, to be put behind an error; nothing where there is none."""
    lines = last_lines(run_dir, role)
    return "; its log ends: " + " | ".join(lines) if lines else ""


def last_lines(run_dir: str | Path, role: str, count: int = LOG_LINES) -> list[str]:
    """The last lines of logs/ROLE.log that are not empty."""
    path = Path(run_dir) / "logs" / f"{role}.log"
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        text = file.read().decode(errors="replace")
    return [line.strip()[:300] for line in text.splitlines() if line.strip()][-count:]


@contextmanager
def watched(seconds: float, what: str, tell: Callable[[], None] = lambda: None) -> Iterator[None]:
    """End this process with exit code 75 if the body takes longer than `seconds`.

    A rank that is stuck in a collective cannot be interrupted, nor joined: it has to go. The stacks
    of all threads go to stderr before, and `tell` is called; the disk that it writes to may be what
    hangs.
    """

    def end() -> None:
        last = threading.Timer(LAST_WORDS_S, os._exit, [HUNG])
        last.daemon = True
        last.start()
        print(f"{what} did not end within {seconds:.0f} s", file=sys.stderr, flush=True)  # noqa: T201
        faulthandler.dump_traceback(file=sys.stderr)
        with suppress(Exception):
            tell()
        os._exit(HUNG)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
