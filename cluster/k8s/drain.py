"""Taking a pod's node out of its Ray cluster in order, before Kubernetes ends the pod."""

import os
import time
from typing import Any

from configs.errors import ConfigError

POLL_S = 0.5


def drain_own_node(deadline_s: float, address: str | None) -> str:
    """Announce that this pod's node goes in `deadline_s` seconds, and wait until it has gone.

    New actors are then placed elsewhere, running calls end, learners see a preemption notice and
    fleets stop using its engines; with the last actor gone the node leaves. Returns one line that
    says what became of it. Raises `ConfigError` where there is no such cluster or node.
    """
    import ray

    # Ray has no public way to drain a node, and neither module says its names to a type checker.
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
    from ray.core.generated import autoscaler_pb2

    if not address:
        raise ConfigError("RAY_ADDRESS is not set: this is not a pod of a Ray cluster")
    client = GcsClient(address=address)
    node_id = _own_node(client, ray.util.get_node_ip_address())
    accepted, reason = client.drain_node(
        node_id,
        autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION,  # pyright: ignore[reportAttributeAccessIssue]
        "its pod is being deleted",
        int(1000 * (time.time() + deadline_s)),  # nodes are told by the clock on the wall
    )
    if not accepted:
        raise ConfigError(f"node {node_id} cannot be drained: {reason}")
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        if node_id not in _alive(client):
            return f"node {node_id} has left the cluster"
        time.sleep(POLL_S)
    return f"node {node_id} still has work after {deadline_s:g} s"


def _own_node(client: Any, ip: str) -> str:
    """The node of this pod: by the pod's name, which KubeRay gives Ray as instance id, else by
    address."""
    instance = os.environ.get("RAY_CLOUD_INSTANCE_ID")
    for node_id, node in _alive(client).items():
        if (node.instance_id == instance) if instance else (node.node_manager_address == ip):
            return node_id
    raise ConfigError(f"no live Ray node is at {instance or ip}")


def _alive(client: Any) -> dict[str, Any]:
    nodes = client.get_all_node_info(timeout=10)
    return {node_id.hex(): node for node_id, node in nodes.items() if node.state == 0}
