"""Who may talk to the pods, and what Prometheus reads from them."""

from typing import Any

from cluster.k8s.pods import PORTS, Document, instance_labels
from configs.kubernetes import KubernetesConfig

AGENT_PORT = 52365
"""Of the agent on every node, which KubeRay asks for the health of a RayService."""

NAMESPACE_LABEL = "kubernetes.io/metadata.name"
"""Kubernetes itself gives every namespace this label."""


def network_policies(section: KubernetesConfig) -> list[Document]:
    """One policy for the run's pods, and one for the reward service's; all else is shut out."""
    policies = [_policy(section, str(section.name), [])]
    if section.reward_service:
        part_of = {"app.kubernetes.io/part-of": "attune"}
        callers: list[Document] = [{"podSelector": {"matchLabels": part_of}}]
        callers += [_namespace(name) for name in section.reward_service.clients]
        policies.append(
            _policy(
                section, f"{section.name}-rewards", [{"from": callers, "ports": _ports("serve")}]
            )
        )
    return policies


def pod_monitors(section: KubernetesConfig) -> list[Document]:
    """What Prometheus collects from the head and from the workers of a run."""
    instances = [str(section.name)]
    if section.reward_service:
        instances.append(f"{section.name}-rewards")
    ports = {"head": ["metrics", "as-metrics", "dash-metrics"], "worker": ["metrics"]}
    return [
        _pod_monitor(section, instance, kind, names)
        for instance in instances
        for kind, names in ports.items()
    ]


def _policy(section: KubernetesConfig, instance: str, more: list[Document]) -> Document:
    members = {"matchLabels": instance_labels(instance)}
    operator: list[Any] = [*_ports("dashboard", "serve"), {"protocol": "TCP", "port": AGENT_PORT}]
    ingress = [
        {"from": [{"podSelector": members}]},  # Ray's processes use any port among themselves
        {"from": [_namespace(section.operator_namespace)], "ports": operator},
        {
            "from": [_namespace(section.monitoring_namespace)],
            "ports": _ports("metrics", "as-metrics", "dash-metrics"),
        },
        *more,
    ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": instance,
            "namespace": section.namespace,
            "labels": instance_labels(instance),
        },
        "spec": {"podSelector": members, "policyTypes": ["Ingress"], "ingress": ingress},
    }


def _namespace(name: str) -> Document:
    return {"namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: name}}}


def _ports(*names: str) -> list[Document]:
    return [{"protocol": "TCP", "port": PORTS[name]} for name in names]


def _pod_monitor(section: KubernetesConfig, instance: str, kind: str, ports: list[str]) -> Document:
    cluster = {
        "sourceLabels": ["__meta_kubernetes_pod_label_ray_io_cluster"],
        "targetLabel": "ray_io_cluster",
    }
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": {
            "name": f"{instance}-{kind}",
            "namespace": section.namespace,
            "labels": instance_labels(instance) | section.monitor_labels,
        },
        "spec": {
            "jobLabel": "ray.io/cluster",
            "selector": {
                "matchLabels": {
                    "ray.io/node-type": kind,
                    "app.kubernetes.io/instance": instance,
                }
            },
            "podMetricsEndpoints": [{"port": port, "relabelings": [cluster]} for port in ports],
        },
    }
