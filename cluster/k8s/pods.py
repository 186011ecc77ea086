"""Pod templates of the head, of worker groups and of the submitter, as Kubernetes reads them."""

from typing import Any

from cluster.k8s.groups import Group
from configs.kubernetes import KubernetesConfig, Placing

CONFIG_DIR = "/etc/attune"
CONFIG_FILE = f"{CONFIG_DIR}/run.yaml"
"""Where every pod finds the run's configuration."""

USER_ID = 1000
"""The user that `cluster/k8s/Dockerfile` makes."""

SHUTDOWN_S = 10
"""Seconds that Ray's own drain on SIGTERM may take after the hook has drained the node, and as many
again until the process has ended."""

PORTS = {
    "gcs-server": 6379,
    "dashboard": 8265,
    "client": 10001,
    "serve": 8000,
    "metrics": 8080,
    "as-metrics": 44217,
    "dash-metrics": 44227,
}
"""Of the head. KubeRay adds `metrics` alone by itself; the other two are of autoscaler and
dashboard."""

Document = dict[str, Any]


def instance_labels(instance: str) -> dict[str, str]:
    """Labels of everything that belongs to one run or service; network policies select by them."""
    return {"app.kubernetes.io/part-of": "attune", "app.kubernetes.io/instance": instance}


def head_group(section: KubernetesConfig, instance: str, pages: int | None = None) -> Document:
    """The head: control plane and driver. Without CPUs of its own no actor is placed on it.

    Its dashboard shows what a server at the port `pages` has.
    """
    params = {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"}
    if pages is not None:
        params["proxy-server-url"] = f"http://127.0.0.1:{pages}"
    head = section.head
    container = _container(section, "ray-head", head.cpus, 0, head.memory_gib)
    container["ports"] = [
        {"name": name, "containerPort": number, "protocol": "TCP"} for name, number in PORTS.items()
    ]
    # The autoscaler beside Ray talks to Kubernetes; KubeRay gives its account the rights.
    template = _template(section, instance, container, head, needs_kubernetes=True)
    template["spec"]["restartPolicy"] = "Never"
    return {
        "serviceType": "ClusterIP",
        "rayStartParams": params,
        "labels": {"role": "head", "ray.io/market-type": "on-demand"},
        "template": template,
    }


def worker_group(
    section: KubernetesConfig, instance: str, group: Group, *, autoscaled: bool
) -> Document:
    """A worker group of KubeRay's `workerGroupSpecs`."""
    container = _container(section, "ray-worker", group.cpus, group.gpus, group.memory_gib)
    template = _template(section, instance, container, group.placing)
    template["spec"]["restartPolicy"] = "Never"
    if group.drain_s is not None:
        _drain_before_stop(template["spec"], group.drain_s)
    spec: Document = {
        "groupName": group.name,
        "replicas": group.start,
        "minReplicas": group.least,
        "maxReplicas": group.most,
        "rayStartParams": {},
        "labels": group.labels,
    }
    if autoscaled:
        spec |= {"priority": group.priority, "idleTimeoutSeconds": section.idle_s}
    return spec | {"template": template}


def submitter(section: KubernetesConfig, instance: str) -> Document:
    """The pod that submits the job and follows its log."""
    container: Document = {
        "name": "ray-job-submitter",
        "image": section.image,
        "resources": _resources(cpus=1, gpus=0, memory_gib=1),
        "securityContext": _closed(),
    }
    template = _template(section, instance, container, section.head, mounts=False)
    # A Kubernetes Job takes no other; tries are counted by the RayJob.
    template["spec"]["restartPolicy"] = "Never"
    return template


def _template(
    section: KubernetesConfig,
    instance: str,
    container: Document,
    placing: Placing,
    *,
    needs_kubernetes: bool = False,
    mounts: bool = True,
) -> Document:
    spec: Document = {
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }
    if section.service_account:
        spec["serviceAccountName"] = section.service_account
    if not needs_kubernetes:
        spec["automountServiceAccountToken"] = False
    if section.pull_secret:
        spec["imagePullSecrets"] = [{"name": section.pull_secret}]
    if placing.node_selector:
        spec["nodeSelector"] = dict(placing.node_selector)
    if placing.tolerations:
        spec["tolerations"] = [_toleration(*item) for item in placing.tolerations.items()]
    if placing.priority_class:
        spec["priorityClassName"] = placing.priority_class
    if mounts:
        config_map = f"{section.name}-config"
        spec["volumes"] = [
            {"name": "shared", "persistentVolumeClaim": {"claimName": section.claim}},
            {"name": "config", "configMap": {"name": config_map}},
        ]
        container["volumeMounts"] = [
            {"name": "shared", "mountPath": section.mount_path},
            {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
        ]
    return {"metadata": {"labels": instance_labels(instance)}, "spec": spec}


def _container(
    section: KubernetesConfig, name: str, cpus: int, gpus: int, memory_gib: float
) -> Document:
    token = {"name": section.token_secret, "key": "reward_token", "optional": True}
    return {
        "name": name,
        "image": section.image,
        "env": [
            {"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": str(SHUTDOWN_S)},
            {"name": "ATTUNE_REWARD_TOKEN", "valueFrom": {"secretKeyRef": token}},
        ],
        "resources": _resources(cpus, gpus, memory_gib),
        "securityContext": _closed(),
    }


def _resources(cpus: int, gpus: int, memory_gib: float) -> Document:
    """Requests that equal limits: what Ray counts with is there, and the pod is evicted last."""
    amounts: dict[str, str] = {"cpu": str(cpus), "memory": f"{round(memory_gib * 1024)}Mi"}
    if gpus:
        amounts["nvidia.com/gpu"] = str(gpus)
    return {"limits": amounts, "requests": dict(amounts)}


def _closed() -> Document:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _toleration(key: str, value: str) -> Document:
    if not value:
        return {"key": key, "operator": "Exists"}
    return {"key": key, "operator": "Equal", "value": value}


def _drain_before_stop(spec: Document, drain_s: int) -> None:
    """Tell Ray that the node goes, and wait for its work; then Kubernetes stops the process."""
    command = ["attune", "k8s", "drain", "--deadline-s", str(drain_s)]
    spec["containers"][0]["lifecycle"] = {"preStop": {"exec": {"command": command}}}
    spec["terminationGracePeriodSeconds"] = drain_s + 2 * SHUTDOWN_S
