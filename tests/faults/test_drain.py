"""The preStop hook of pods that may be taken away, on real nodes of one machine."""

import threading

import pytest
import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.k8s.drain import drain_own_node
from configs.errors import ConfigError

# Not beside the tests that share a cluster: this one joins a cluster of its own, and leaves it.
pytestmark = [pytest.mark.slow, pytest.mark.faults]


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield nodes
    ray.shutdown()
    nodes.shutdown()


class Worker:
    def answer(self) -> str:
        return "done"


def states(address: str) -> dict[str, int]:
    nodes = GcsClient(address=address).get_all_node_info(timeout=30)
    return {node.instance_id: node.state for node in nodes.values()}


def test_a_node_leaves_once_its_last_actor_has_ended(cluster, monkeypatch):
    node = cluster.add_node(num_cpus=1, env_vars={"RAY_CLOUD_INSTANCE_ID": "pod-7"})
    monkeypatch.setenv("RAY_CLOUD_INSTANCE_ID", "pod-7")
    ray.init(address=cluster.address, log_to_driver=False)
    place = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    actor = ray.remote(Worker).options(num_cpus=1, scheduling_strategy=place).remote()
    assert ray.get(actor.answer.remote(), timeout=60) == "done"

    # With work on it, the node is still there when the time is up, and its actor still answers.
    assert "still has work after 3 s" in drain_own_node(3, cluster.address)
    assert states(cluster.address) == {"": 0, "pod-7": 0}
    assert ray.get(actor.answer.remote(), timeout=60) == "done"

    threading.Timer(2, ray.kill, [actor]).start()
    assert "has left the cluster" in drain_own_node(90, cluster.address)
    assert states(cluster.address) == {"": 0, "pod-7": 1}  # the head lives, this node is dead


def test_a_pod_without_a_node_says_so(cluster, monkeypatch):
    monkeypatch.setenv("RAY_CLOUD_INSTANCE_ID", "pod-8")
    with pytest.raises(ConfigError, match="no live Ray node is at pod-8"):
        drain_own_node(1, cluster.address)
