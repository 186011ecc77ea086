"""Whether a run goes on, has finished, failed, or was stopped; told from its folder."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.driver_record import FILE as DRIVER
from cluster.driver_record import driver_host, driver_lives
from cluster.metrics.telemetry import FOLDER as TELEMETRY

SILENT_S = 60.0
"""A run that another machine drives goes on where its folder was written to within so long."""


def state_of(run_dir: Path, failures: Sequence[Path]) -> str:
    """`running`, `finished`, `failed` or `stopped`.

    `failures`: its failure bundles, the newest first.
    """
    if driver_lives(run_dir) or _is_written_elsewhere(run_dir):
        return "running"
    if has_summary(run_dir):
        return "finished"
    if not failures:
        return "stopped"
    # A run that went on after its failure, and was stopped then, did not fail.
    went_on = _written(run_dir / "metrics.jsonl") > _written(failures[0])
    return "stopped" if went_on else "failed"


def has_summary(run_dir: Path) -> bool:
    """Whether the run came to its end: summary.json is there, and whole."""
    try:
        return bool(json.loads((run_dir / "summary.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False


def last_written(run_dir: Path) -> float:
    """Unix second at which its figures were last added to; 0 where there are none."""
    files = [run_dir / "metrics.jsonl", run_dir / "events.jsonl", run_dir / "config.yaml"]
    files += [run_dir / TELEMETRY / name for name in _names(run_dir / TELEMETRY)]
    return max((_written(file) for file in files), default=0.0)


def _is_written_elsewhere(run_dir: Path) -> bool:
    """Another machine drives it, and its figures still come."""
    if not (run_dir / DRIVER).exists() or driver_host(run_dir) is None:
        return False
    return time.time() - last_written(run_dir) < SILENT_S


def _names(folder: Path) -> list[str]:
    try:
        return [file.name for file in folder.iterdir()]
    except OSError:
        return []


def _written(file: Path) -> float:
    """Unix second; 0 where it is not there, or not any more."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
