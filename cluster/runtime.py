"""Joining or starting Ray, and what each role's process gets from its environment."""

import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml
from ray.job_config import JobConfig

from cluster import network
from cluster.address import check_address
from cluster.driver_record import forget_driver, record_driver
from cluster.errors import root_cause as root_cause
from cluster.failure import write_failure
from cluster.job_metadata import metadata_of, publish_metadata, submitted_job
from cluster.joining import await_actors_gone, take_over
from cluster.loopback import loopback_only
from cluster.progress import quiet_logs
from cluster.signals import handlers_kept
from cluster.watching import (
    Watch,
    dashboard_of,
    forget_token,
    keep_token,
    pages_for,
)
from configs.errors import ConfigError
from configs.redaction import RedactingFormatter, known_secrets, redact_text
from configs.schema import OFFLINE, RunConfig

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
TASKS_KEPT = ("RAY_task_events_max_num_task_in_gcs", "10000")
"""Finished calls that a Ray of our own remembers for its dashboard: by default ten times as many,
until which its head grew by 70 MiB in 1,000 steps."""
LATE = "timed out during startup"
"""What Ray says of a node of its own that did not come up in time."""


def start_ray(config: RunConfig, runs_at_once: int = 1, pages: str | None = None) -> Watch:
    """Join the cluster at `cluster.address`, or start one on this machine for this run alone.

    Logical CPUs of an own cluster are as many as the run asks for (times `runs_at_once`): roles
    take turns on few cores. Its dashboard shows what the server at `pages` has.
    """
    cluster = config.cluster
    options: dict[str, Any] = {
        "namespace": namespace(config),
        "runtime_env": runtime_env(),
        "log_to_driver": False,
        "logging_level": logging.WARNING,
        "job_config": JobConfig(metadata=metadata_of(config, pages)),
    }
    if cluster.address is not None:
        check_address(cluster.address)
        with handlers_kept():
            ray.init(address=cluster.address, **options)
        publish_metadata(config, pages)
        await_actors_gone(namespace(config))
        return Watch(pages=pages)
    with handlers_kept(), loopback_only():
        context = _init_own(
            num_cpus=runs_at_once * (math.ceil(cpus_wanted(config)) + 1),
            include_dashboard=cluster.dashboard,
            dashboard_host="127.0.0.1",
            # The dashboard asks it first, and answers itself where it has nothing to say.
            proxy_server_url=pages if cluster.dashboard else None,
            **options,
        )
    dashboard = dashboard_of(context)
    token_file = keep_token(cluster.run_dir) if dashboard else None
    return Watch(pages=pages, dashboard=dashboard, token_file=token_file)


def _init_own(**options: Any) -> Any:
    """Start Ray on this machine, once more where it is not up within the 30 s that it gives itself.

    They are too few on a machine that is busy with other things, and cannot be set.
    """
    others = psutil.Process().children()
    os.environ.setdefault(*TASKS_KEPT)
    try:
        # "local", or a cluster that `ray start` left on this machine is joined.
        return ray.init(address="local", **options)
    except Exception as error:
        if LATE not in str(error):
            raise
        logger.warning("Ray was not up within the time it gives itself; it is started once more")
        for process in psutil.Process().children():
            if process not in others:
                process.kill()
        return ray.init(address="local", **options)


@contextmanager
def ray_session(
    config: RunConfig, runs_at_once: int = 1, *, is_run: bool = True, root: Path | None = None
) -> Iterator[Watch]:
    """Ray for the length of the block; leaving it ends every actor the run started.

    A run can be watched meanwhile, with the other runs in `root`, where that is given.

    An error that leaves it has its failure bundle written while Ray can still be asked. `is_run`:
    this process drives what is in the run folder, where no second one may; without it, the folder
    is a place for logs.
    """
    run_dir = config.cluster.run_dir
    if is_run:
        take_over(run_dir)
        record_driver(run_dir, [])
    try:
        with pages_for(config, root) if is_run else nullcontext() as pages:
            watch = start_ray(config, runs_at_once, pages)
            quiet_logs(Path(run_dir) / "logs" / "driver.log")
            if is_run and config.cluster.address is None:
                record_driver(run_dir, own_ray_pids())
            yield watch
    except ConfigError:  # refused before anything was lost
        raise
    except Exception as error:
        write_failure(run_dir, error)
        raise
    finally:
        ray.shutdown()
        forget_token(run_dir)
        if is_run:
            forget_driver(run_dir)


def own_ray_pids() -> list[int]:
    """The processes of the Ray that this process started.

    With their children so far: the raylet's agents outlive it by a minute or more.
    """
    from ray._private.worker import _global_node as node

    started = node.all_processes.values() if node is not None else []
    pids = [info.process.pid for several in started for info in several]
    for pid in list(pids):
        with suppress(psutil.NoSuchProcess):
            pids += [child.pid for child in psutil.Process(pid).children()]
    return pids


def namespace(config: RunConfig) -> str:
    """Of the run's named actors: two runs on one cluster never meet."""
    return "attune-" + str(Path(config.cluster.run_dir).resolve())


def runtime_env() -> dict[str, Any]:
    """The environment variables of runtime_env.yaml; code is installed, not shipped, here.

    Those that a submitted job was given already stay as they are: Ray refuses to be given one
    twice, even with the same value.
    """
    text = (ROOT / "runtime_env.yaml").read_text()
    given = submitted_job().get("runtime_env", {}).get("env_vars", {})
    variables = yaml.safe_load(text)["env_vars"]
    return {
        "env_vars": {name: text for name, text in variables.items() if name not in given},
        "worker_process_setup_hook": network.HOOK,
    }


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
    most = max(cluster.rollout.num_engines, cluster.rollout.max_engines or 0)
    engines = most + (config.data.source == "policy+reference")
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
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
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
    target, secrets = Path(run_dir) / "logs" / "ray", known_secrets()
    try:
        for file in _worker_logs():
            if file.stat().st_size > (before or {}).get(file.name, 0):
                target.mkdir(parents=True, exist_ok=True)
                text = file.read_text(encoding="utf-8", errors="replace")
                (target / file.name).write_text(redact_text(text, secrets), encoding="utf-8")
    except OSError as error:
        logger.warning("%s: what workers printed is not kept: %s", target, error)


def _worker_logs() -> list[Path]:
    from ray._private.worker import _global_node as node  # Ray has no public way to this folder

    return sorted(Path(node.get_logs_dir_path()).glob("worker-*")) if node is not None else []
