"""What failed in a run and what was replaced, as people read it: events and failure bundles."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.dashboards.gantt import clock
from cluster.events import tone
from cluster.failure import bundles, last_lines
from configs.redaction import redact, redact_text

MOST_EVENTS = 300
"""Shown, the newest."""
LOG_LINES = 60
MOST_LOGS = 12
ERROR_CHARS = 20_000


@dataclass(frozen=True, kw_only=True)
class Event:
    """A line of events.jsonl."""

    day: str
    clock: str
    kind: str
    style: str
    """`worse`, `better`, or empty."""
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A failure bundle, or what is whole of it."""

    folder: str
    time: str
    step: str
    error: str
    cause: str
    remedy: str
    phases: tuple[tuple[str, str], ...]
    trace: str
    logs: tuple[tuple[str, str], ...]
    """(file, its last lines)."""
    batch: str


def events_of(events: list[dict[str, Any]]) -> list[Event]:
    """The newest first."""
    return [_event(event) for event in reversed(events[-MOST_EVENTS:])]


def _event(event: Mapping[str, Any]) -> Event:
    moment, kind = event.get("time"), str(event.get("kind", ""))
    is_time = isinstance(moment, int | float)
    return Event(
        day=time.strftime("%Y-%m-%d", time.localtime(moment)) if is_time else "",
        clock=clock(moment) if is_time else "",
        kind=kind,
        style=tone(kind),
        facts=tuple((k, _text(v)) for k, v in event.items() if k not in ("time", "kind")),
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def newest_failure(run_dir: Path) -> Failure | None:
    """Of the newest bundle, without its logs; None where there is none."""
    found = bundles(run_dir)
    return read_failure(found[0], with_logs=False) if found else None


def read_failure(bundle: Path, *, with_logs: bool = True) -> Failure:
    """What is whole of a bundle; the rest is empty."""
    facts = _facts(bundle / "failure.json")
    cause = facts.get("cause")
    cause = cause if isinstance(cause, dict) else {}
    return Failure(
        folder=bundle.name,
        time=str(facts.get("time", "")),
        step=str(facts.get("step", "")),
        error=str(facts.get("error", "")) or "(failure.json is torn: the bundle is not whole)",
        cause=str(cause.get("cause", "")),
        remedy=str(cause.get("remedy", "")),
        phases=_pairs(facts.get("phases")),
        trace=_read(bundle / "error.txt")[:ERROR_CHARS] if with_logs else "",
        logs=_logs(bundle / "logs") if with_logs else (),
        batch=_batch(bundle / "batch.json") if with_logs else "",
    )


def _pairs(value: object) -> tuple[tuple[str, str], ...]:
    return tuple((str(k), str(v)) for k, v in value.items()) if isinstance(value, dict) else ()


def _facts(file: Path) -> dict[str, Any]:
    try:
        return dict(redact(json.loads(_read(file))))
    except (ValueError, TypeError):
        return {}


def _read(file: Path) -> str:
    try:
        return redact_text(file.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""


def _logs(folder: Path) -> tuple[tuple[str, str], ...]:
    """Those that were written to last; empty ones left out."""
    files = [file for file in folder.rglob("*") if file.is_file()] if folder.is_dir() else []
    files.sort(key=lambda file: -file.stat().st_mtime)
    tails = [(str(f.relative_to(folder)), "".join(last_lines(f, LOG_LINES))) for f in files]
    return tuple((name, redact_text(tail)) for name, tail in tails if tail.strip())[:MOST_LOGS]


def _batch(file: Path) -> str:
    text = _read(file)
    if not text:
        return ""
    try:
        rows = [dict(row) for row in json.loads(text)]
    except (ValueError, TypeError):
        return "batch.json is torn"
    shown = [
        {name: value for name, value in row.items() if not isinstance(value, list)}
        for row in rows[:3]
    ]
    head = f"{len(rows)} samples in batch.json; the first ones, without lists:\n"
    return head + json.dumps(shown, indent=1, ensure_ascii=False)
