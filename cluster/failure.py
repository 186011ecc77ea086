"""The failure bundle: everything one needs to understand an abort, in `failure/` of the run folder.

    failure.json     when, at which step, the error in one line, the likely cause and its remedy
    error.txt        the whole chain of errors, with tracebacks
    batch.json       the samples that the error arose on, where it carries them
    config.yaml  versions.json  phases.json  events.jsonl  cluster.json  logs/

Secrets are taken out of all of it. A bundle that is there becomes `failure-1`, `failure-2`, ...:
`failure` is always the newest.
"""

import json
import logging
import shutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from cluster.causes import Cause, suggest
from cluster.cluster_state import cluster_state
from cluster.errors import batch_of, behind, chain, root_cause
from cluster.events import FILE as EVENTS
from cluster.events import record
from cluster.phases import phases
from cluster.versions import environment, versions
from configs.redaction import known_secrets, redact, redact_text

logger = logging.getLogger(__name__)

FOLDER = "failure"
LOG_LINES = 200
NUM_EVENTS = 200
MOST_SAMPLES = 256
TAIL_BYTES = 256 * 1024
"""Of a log are read at most so many; 200 lines are seldom more."""


def write_failure(run_dir: str | Path, error: BaseException) -> Path | None:
    """Write the bundle of an abort; returns its folder, or None where it could not be written.

    Once for an error: a second call with the same error, or with one that it caused, returns the
    folder of the first. Never raises for want of room or rights: the error itself matters more.
    """
    if (written := written_for(error)) is not None:
        return written
    run_dir = Path(run_dir)
    try:
        folder = _write(run_dir, error)
    except OSError as reason:
        logger.warning("no failure bundle in %s: %s", run_dir, reason)
        return None
    error.__dict__["bundle"] = str(folder)
    record(run_dir, "failure", error=redact_text(root_cause(error))[:500], bundle=folder.name)
    return folder


def written_for(error: BaseException) -> Path | None:
    """The bundle that an error, or what caused it, already has."""
    found = [one.__dict__["bundle"] for one in behind(error) if "bundle" in one.__dict__]
    return Path(found[0]) if found else None


def error_text(error: BaseException) -> str:
    """The chain of errors: each in one paragraph, then the tracebacks."""
    trace = "".join(traceback.format_exception(error))
    return _messages(error) + "\n\n---- tracebacks ----\n" + trace


def _messages(error: BaseException) -> str:
    parts = [f"{type(one).__module__}.{type(one).__name__}: {one}" for one in chain(error)]
    return "\n\ncaused by: ".join(parts)


def _write(run_dir: Path, error: BaseException) -> Path:
    run_dir.mkdir(parents=True, exist_ok=True)
    partial = run_dir / f".{FOLDER}"
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "logs").mkdir(parents=True)
    text = error_text(error)
    tails = _copy_logs(run_dir / "logs", partial / "logs")
    cause = suggest([root_cause(error), _messages(error), *tails])
    parts: dict[str, Callable[[], str]] = {
        # What a full disk may not leave room for comes last.
        "failure.json": lambda: _json(_facts(run_dir, error, cause)),
        "error.txt": lambda: text,
        "config.yaml": lambda: _config(run_dir),
        "batch.json": lambda: _json((batch_of(error) or [])[:MOST_SAMPLES]),
        "versions.json": lambda: _json({"versions": versions(), "environment": environment()}),
        "phases.json": lambda: _json(phases(run_dir)),
        "events.jsonl": lambda: "".join(last_lines(run_dir / EVENTS, NUM_EVENTS)),
        "cluster.json": lambda: _json(cluster_state()),
    }
    if batch_of(error) is None:
        del parts["batch.json"]
    for name, content in parts.items():
        (partial / name).write_text(redact_text(content()), encoding="utf-8")
    target = run_dir / FOLDER
    if target.exists():
        target.rename(_kept_as(run_dir))
    partial.rename(target)
    return target


def _kept_as(run_dir: Path) -> Path:
    number = 1
    while (run_dir / f"{FOLDER}-{number}").exists():
        number += 1
    return run_dir / f"{FOLDER}-{number}"


def bundles(run_dir: str | Path) -> list[Path]:
    """All bundles of a run, the newest first."""
    folder = Path(run_dir)
    kept = [f for f in folder.glob(f"{FOLDER}-*") if f.name.removeprefix(f"{FOLDER}-").isdigit()]
    kept.sort(key=lambda f: -int(f.name.removeprefix(f"{FOLDER}-")))
    newest = [folder / FOLDER] if (folder / FOLDER).is_dir() else []
    return newest + kept


def _facts(run_dir: Path, error: BaseException, cause: Cause) -> dict[str, Any]:
    batch = batch_of(error)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "error": root_cause(error),
        "step": last_step(run_dir),
        "cause": {"name": cause.name, "cause": cause.cause, "remedy": cause.remedy},
        "phases": phases(run_dir),
        "samples_in_batch": len(batch) if batch is not None else None,
    }


def last_step(run_dir: Path) -> int:
    """The last learner step in metrics.jsonl; 0 where there is none."""
    for line in reversed(last_lines(run_dir / "metrics.jsonl", 3)):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):  # torn
            continue
    return 0


def _config(run_dir: Path) -> str:
    path = run_dir / "config.yaml"
    if not path.exists():
        return ""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        return yaml.safe_dump(redact(yaml.safe_load(text)), sort_keys=False, allow_unicode=True)
    except yaml.YAMLError:  # written by hand, or torn; the text goes through redaction as well
        return text


def _copy_logs(source: Path, target: Path) -> list[str]:
    """The last lines of every log, to files of the same name; also as texts, the newest first."""
    files = [path for path in source.rglob("*") if path.is_file()]
    files.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    secrets, tails = known_secrets(), []
    for path in files:
        tail = redact_text("".join(last_lines(path, LOG_LINES)), secrets)
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(tail, encoding="utf-8")
        tails.append(tail)
    return tails


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a text file, with their ends; none where there is no file."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        start = max(0, path.stat().st_size - TAIL_BYTES)
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines(keepends=True)
    return lines[start > 0 :][-count:]


def _json(value: Any) -> str:
    return json.dumps(redact(value), indent=1, ensure_ascii=False, default=str) + "\n"
