"""Which phase each role of a run is in: one word in `phases/ROLE` of the run folder.

People read it when a run hangs, failure bundles keep it, and tests kill in the phase they mean to.
Which it was before stands in telemetry (`cluster.metrics.telemetry`).
"""

import logging
from pathlib import Path

from cluster.files import replace_text
from cluster.metrics.telemetry import append

logger = logging.getLogger(__name__)

FOLDER = "phases"


def set_phase(run_dir: str | Path, role: str, phase: str) -> None:
    """Say what `role` does now, such as `sample`, `score`, `update`, `sync`, `checkpoint`.

    It is for whoever looks: where it cannot be written, the work goes on.
    """
    try:
        replace_text(Path(run_dir) / FOLDER / role, phase)
    except OSError:
        logger.debug("phase %s was not written", phase, exc_info=True)
    append(run_dir, role, phase=phase)


def phase_of(run_dir: str | Path, role: str) -> str:
    """What `role` last said; empty where it said nothing yet."""
    path = Path(run_dir) / FOLDER / role
    return path.read_text() if path.exists() else ""


def phases(run_dir: str | Path) -> dict[str, str]:
    """Role -> phase of all roles."""
    folder = Path(run_dir) / FOLDER
    files = sorted(folder.iterdir()) if folder.exists() else []
    return {file.name: file.read_text() for file in files if not file.name.startswith(".")}
