"""events.jsonl of a run folder: what failed, what was replaced, what joined and left, in order.

Every process of a run appends to it, one short line in one write, so lines never mix.
"""

import json
import time
from pathlib import Path
from typing import Any

from configs.redaction import redact

FILE = "events.jsonl"
BAD = ("fail", "lost", "stuck", "torn", "empty", "preempt")
GOOD = ("replaced", "joined", "started", "added", "resized")
"""In the kind of an event: something went wrong, or was mended."""


def record(run_dir: str | Path, kind: str, **facts: Any) -> None:
    """Append a line with `time` (unix seconds), `kind` and the facts.

    Secrets are taken out of the facts. A full disk loses the line, not the run.
    """
    line = json.dumps({"time": round(time.time(), 3), "kind": kind, **redact(facts)}) + "\n"
    try:
        with (Path(run_dir) / FILE).open("ab", buffering=0) as file:
            file.write(line.encode())
    except OSError:
        pass


def tone(kind: str) -> str:
    """`worse` for an event that says that something went wrong, `better` where it was mended.

    >>> tone("engine_lost"), tone("engine_replaced"), tone("checkpoint_saved")
    ('worse', 'better', '')
    """
    if any(word in kind for word in BAD):
        return "worse"
    return "better" if any(word in kind for word in GOOD) else ""


def read_events(run_dir: str | Path) -> list[dict[str, Any]]:
    """All whole lines, oldest first; a line cut by a full disk is left out."""
    path = Path(run_dir) / FILE
    events = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        try:
            events.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            continue
    return events
