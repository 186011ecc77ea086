"""Joining or starting Ray, and what each role's process gets from its environment."""

import logging
import math
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import yaml

from cluster.progress import quiet_logs
from configs.schema import OFFLINE, RunConfig

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent


def start_ray(config: RunConfig, runs_at_once: int = 1) -> None:
    """Join the cluster at `cluster.address`, or start one on this machine for this run alone.

    Logical CPUs of an own cluster are as many as the run asks for (times `runs_at_once`): roles
    take turns on few cores.
    """
    cluster = config.cluster
    options: dict[str, Any] = {}
    if cluster.address is None:
        options = {
            "address": "local",  # or a cluster that `ray start` left on this machine is joined
            "num_cpus": runs_at_once * (math.ceil(cpus_wanted(config)) + 1),
            "include_dashboard": cluster.dashboard,
            "dashboard_host": "127.0.0.1",
        }
    else:
        options = {"address": cluster.address}
    ray.init(
        namespace=namespace(config),
        runtime_env=runtime_env(),
        log_to_driver=False,
        logging_level=logging.WARNING,
        **options,
    )


@contextmanager
def ray_session(config: RunConfig, runs_at_once: int = 1) -> Iterator[None]:
    """Ray for the length of the block; leaving it ends every actor the run started."""
    start_ray(config, runs_at_once)
    log = Path(config.cluster.run_dir) / "logs" / "driver.log"
    quiet_logs(log)
    try:
        yield
    finally:
        ray.shutdown()


def namespace(config: RunConfig) -> str:
    """Of the run's named actors: two runs on one cluster never meet."""
    return "attune-" + str(Path(config.cluster.run_dir).resolve())


def runtime_env() -> dict[str, Any]:
    """The environment variables of runtime_env.yaml; code is installed, not shipped, here."""
    text = (ROOT / "runtime_env.yaml").read_text()
    return {"env_vars": yaml.safe_load(text)["env_vars"]}


def role_env(cpus: float, device: str) -> dict[str, Any]:
    """Threads and accelerator of one role; added to the run's environment by Ray."""
    threads = str(max(1, math.ceil(cpus)))
    variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if device == "cpu":
        variables["DS_ACCELERATOR"] = "cpu"
    return {"env_vars": variables}


def cpus_wanted(config: RunConfig) -> float:
    """Logical CPUs of all roles together."""
    cluster = config.cluster
    learner = cluster.learner.num_workers * cluster.learner.cpus_per_worker
    mixture = config.feedback.mixture
    if mixture is not None:  # its models judge after they were trained
        workers = mixture.num_models * cluster.reward.num_workers
        return max(learner, workers * cluster.reward.cpus_per_worker)
    if config.algorithm.name in OFFLINE:
        return learner
    judges = len(config.feedback.rewards) * cluster.reward.num_workers
    judges *= config.feedback.service is None
    engines = cluster.rollout.num_engines + (config.data.source == "policy+reference")
    return (
        learner
        + engines * cluster.rollout.cpus_per_engine
        + judges * cluster.reward.cpus_per_worker
        + cluster.reference.num_workers
        * (1 + len(config.model.extra_references))
        * cluster.reference.cpus_per_worker
    )


class RunLog(logging.FileHandler):
    """The log of one role in a run's folder."""


def log_to_file(run_dir: str, role: str) -> None:
    """Send this process's log records to logs/ROLE.log of this run's folder, and of no other."""
    folder = Path(run_dir) / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    handler = RunLog(folder / f"{role}.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    for other in [other for other in root.handlers if isinstance(other, RunLog)]:
        root.removeHandler(other)
        other.close()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger(__name__).info("%s is process %d", role, os.getpid())


def free_port() -> int:
    """A TCP port that nothing listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def worker_log_sizes() -> dict[str, int]:
    """Name -> bytes that the workers of this Ray have printed; only on the head's own machine."""
    return {file.name: file.stat().st_size for file in _worker_logs()}


def keep_worker_logs(run_dir: str, before: Mapping[str, int] | None = None) -> None:
    """Copy what the workers printed into the run folder; only on the head's own machine.

    Files as long as they were `before` are of earlier runs. Not told by their times: clocks jump.
    A disk without room for them keeps none.
    """
    target = Path(run_dir) / "logs" / "ray"
    try:
        for file in _worker_logs():
            if file.stat().st_size > (before or {}).get(file.name, 0):
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, target)
    except OSError as error:
        logger.warning("%s: what workers printed is not kept: %s", target, error)


def _worker_logs() -> list[Path]:
    from ray._private.worker import _global_node as node  # Ray has no public way to this folder

    return sorted(Path(node.get_logs_dir_path()).glob("worker-*")) if node is not None else []


def root_cause(error: BaseException) -> str:
    """One line: the first error of a chain of Ray, Ray Train and plain exceptions."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        failures = getattr(error, "worker_failures", None)
        inner = (
            next(iter(failures.values()), None)
            if failures
            else getattr(error, "cause", None) or error.__cause__
        )
        if not isinstance(inner, BaseException):
            break
        error = inner
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    text = lines[-1] if lines else ""
    name = type(error).__name__
    return text if isinstance(error, ValueError) or text.startswith(name) else f"{name}: {text}"
