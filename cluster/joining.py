"""Going on where another driver was: none may live, and its processes must be gone.

driver dies ─▶ its own Ray lives on for a minute   ─▶ ended here, before a Ray is started
            ─▶ a cluster's actors of that job end  ─▶ waited for, before actors are named anew
"""

import logging
import time
from pathlib import Path
from typing import Any

import psutil

from cluster.driver_record import driver_lives, left_behind
from configs.errors import ConfigError

logger = logging.getLogger(__name__)

GONE_S = 10.0
"""Until killed processes are gone."""
ACTORS_S = 120.0
"""Until Ray has ended the actors of a driver that died; on a cluster seconds."""


def take_over(run_dir: str | Path) -> None:
    """Make sure that nobody else works on a run of this machine.

    Raises ConfigError where its driver lives. What is left of the Ray of a dead one is ended: its
    learner would go on writing to the run folder.
    """
    if pid := driver_lives(run_dir):
        raise ConfigError(
            f"cluster.run_dir: process {pid} of this machine drives the run in {run_dir}; stop it "
            f"first (kill {pid})"
        )
    left = left_behind(run_dir)
    for process in list(left):
        try:
            left += process.children(recursive=True)
        except psutil.Error:
            continue
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    if left:
        logger.warning("ended %d processes that the run's last driver left behind", len(left))
        psutil.wait_procs(left, timeout=GONE_S)


def await_actors_gone(namespace: str, deadline_s: float = ACTORS_S) -> None:
    """Wait until no named actor of the run is left on the cluster that was joined.

    Raises RuntimeError once `deadline_s` have passed: another driver works on the run.
    """
    import ray

    started, said = time.monotonic(), False
    while names := _names(ray.util.list_named_actors(all_namespaces=True), namespace):
        if not said:
            logger.warning("waiting for the last driver's %s to end", ", ".join(names))
            said = True
        if time.monotonic() - started > deadline_s:
            raise RuntimeError(
                f"{', '.join(names)} of this run still live after {deadline_s:.0f} s (phase: "
                "start): another driver works on it; stop that one (`ray job list`, `ray job stop`)"
            )
        time.sleep(0.5)


def _names(actors: Any, namespace: str) -> list[str]:
    """Of a run, and of the runs in folders below its own, as an ablation has them."""
    return sorted(
        actor["name"]
        for actor in actors
        if actor["namespace"] == namespace or actor["namespace"].startswith(f"{namespace}/")
    )
