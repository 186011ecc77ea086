"""Starting the reward service, watching it, and stopping it."""

import logging
import math
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client  # the only way to Serve's own settings
from ray.serve.schema import ApplicationStatus

from cluster.loopback import loopback_only
from cluster.progress import quiet_logs
from cluster.runtime import runtime_env
from cluster.serve.app import NAME, application
from configs.schema import RunConfig

logger = logging.getLogger(__name__)

LOOK_S = 0.5
Say = Callable[[str], None]


def serve_rewards(config: RunConfig, token: str | None, say: Say) -> None:
    """Serve until a KeyboardInterrupt; `say` is told the address and every change of replicas.

    Raises RuntimeError where the rewards do not start. On a cluster of its own everything ends with
    this call; of a cluster that was there, the application alone.
    """
    _join_or_start(config)
    try:
        start_service(config, token)
        service = config.cluster.reward_service
        names = ", ".join(config.feedback.rewards)
        say(f"serving {names} at http://{service.host}:{service.port}")
        _watch(say)
    finally:
        if ray.is_initialized():
            _stop(config)


def _stop(config: RunConfig) -> None:
    try:
        if config.cluster.address is not None:
            serve.delete(NAME)
    finally:
        ray.shutdown()


def _join_or_start(config: RunConfig) -> None:
    cluster = config.cluster
    options: dict[str, Any] = {"address": cluster.address}
    if cluster.address is None:
        replicas = cluster.reward_service.max_replicas * cluster.reward.cpus_per_worker
        options = {
            "address": "local",
            "num_cpus": math.ceil(replicas) + 2,  # Serve's own actors find room beside replicas
            "include_dashboard": cluster.dashboard,
            "dashboard_host": "127.0.0.1",
        }
    with loopback_only() if cluster.address is None else nullcontext():
        ray.init(
            runtime_env=runtime_env(), log_to_driver=False, logging_level=logging.WARNING, **options
        )
    quiet_logs(Path(cluster.run_dir) / "logs" / "reward-service.log")
    signal.signal(signal.SIGTERM, _interrupt)  # ray.init has put its own handler there


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def start_service(config: RunConfig, token: str | None) -> None:
    """Deploy the rewards on the Ray that this process is connected to, and wait for a replica.

    An application that an earlier call left there is replaced. Raises RuntimeError where it does
    not start within `cluster.reward.start_deadline_s`.
    """
    service, deadline_s = config.cluster.reward_service, config.cluster.reward.start_deadline_s
    serve.start(
        proxy_location="HeadOnly", http_options={"host": service.host, "port": service.port}
    )
    client = _get_global_client()
    assert client is not None, "Serve was started above"
    listens = client.http_config
    if (listens.host, listens.port) != (service.host, service.port):  # whoever was first decides
        raise RuntimeError(
            f"Ray Serve runs on this cluster already, at {listens.host}:{listens.port}: set "
            "cluster.reward_service.host and port to these"
        )
    target = serve.RunTarget(application(config, token), name=NAME, route_prefix="/")
    serve.run_many([target], wait_for_applications_running=False)
    end = time.monotonic() + deadline_s
    while True:
        found = serve.status().applications.get(NAME)
        if found is not None and found.status == ApplicationStatus.RUNNING:
            return
        reason = _reason(found)
        if found is not None and found.status == ApplicationStatus.DEPLOY_FAILED:
            raise RuntimeError(f"the reward service did not start: {reason}")
        if time.monotonic() > end:
            raise RuntimeError(
                f"the reward service did not start within {deadline_s:.0f} s "
                f"(cluster.reward.start_deadline_s): {reason}"
            )
        time.sleep(LOOK_S)


def _reason(found: object) -> str:
    """The last line that Serve has to say of the deployment, or of the application."""
    deployments = getattr(found, "deployments", {})
    texts = [str(d.message) for d in deployments.values()] + [str(getattr(found, "message", ""))]
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["Serve says nothing of it"])[-1]


def _watch(say: Say) -> None:
    """Tell of changes until interrupted."""
    before = ""
    while True:
        try:
            found = serve.status().applications.get(NAME)
        except RayError as error:  # the controller restarts by itself, and replicas serve on
            logger.warning("Serve does not tell its state: %s", error)
            time.sleep(LOOK_S)
            continue
        if found is None:
            raise RuntimeError("the reward service was deleted by someone else")
        states = found.deployments[NAME].replica_states if NAME in found.deployments else {}
        text = ", ".join(f"{count} {getattr(s, 'value', s).lower()}" for s, count in states.items())
        if text != before:
            say(f"{time.strftime('%H:%M:%S')} replicas: {text or 'none'}")
            before = text
        time.sleep(LOOK_S)
