"""Waiting with an end: calls whose errors name the peer, and work that must not hang."""

import faulthandler
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

HUNG = 75
"""Exit code of a process that ended itself because a piece of work did not end."""
LOG_LINES = 3


def answer(
    call: Any, deadline_s: float, *, peer: str, phase: str, run_dir: str | Path, setting: str
) -> Any:
    """The result of a remote call.

    Raises RuntimeError once `deadline_s` have passed, with the peer, the phase, the last lines of
    its log and the setting that gives it longer.
    """
    try:
        return ray.get(call, timeout=deadline_s)
    except GetTimeoutError as error:
        raise RuntimeError(late(peer, phase, deadline_s, run_dir, setting)) from error


def late(peer: str, phase: str, deadline_s: float, run_dir: str | Path, setting: str) -> str:
    """What is said of a peer that did not answer in time."""
    lines = last_lines(run_dir, peer)
    log = "; its log ends: " + " | ".join(lines) if lines else ""
    return (
        f"{peer} did not answer within {deadline_s:.0f} s (phase: {phase}); raise {setting} if it "
        f"needs longer{log}"
    )


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
def watched(seconds: float, what: str) -> Iterator[None]:
    """End this process with exit code 75 if the body takes longer than `seconds`.

    A rank that is stuck in a collective cannot be interrupted, nor joined: it has to go. The stacks
    of all threads go to stderr before.
    """

    def end() -> None:
        print(f"{what} did not end within {seconds:.0f} s", file=sys.stderr, flush=True)  # noqa: T201
        faulthandler.dump_traceback(file=sys.stderr)
        os._exit(HUNG)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
