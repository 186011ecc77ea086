"""A run's YAML -> the manifests for KubeRay, as plain documents."""

import re
from dataclasses import dataclass
from pathlib import Path

from cluster.k8s.groups import kubernetes, role_labels
from cluster.k8s.network import network_policies, pod_monitors
from cluster.k8s.pods import CONFIG_FILE, Document, instance_labels
from cluster.k8s.ray_objects import pages_port, ray_cluster, ray_job, reward_service
from configs.errors import ConfigError
from configs.kubernetes import LONGEST_NAME, NAME_PATTERN, KubernetesConfig
from configs.load import to_yaml
from configs.paths import path_settings
from configs.schema import RunConfig


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One document and the file it belongs in."""

    file: str
    document: Document


def render(config: RunConfig) -> list[Manifest]:
    """All manifests of a run; raises `ConfigError` where its settings do not fit Kubernetes."""
    config = named(config)
    section = kubernetes(config)
    _check(config, section)
    files: dict[str, list[Document]] = {"config.yaml": [_config_map(config, section)]}
    if section.claim_gib:
        files["claim.yaml"] = [_claim(section, section.claim_gib)]
    if section.workload == "job":
        files["ray_job.yaml"] = [ray_job(config, section)]
    else:
        files["ray_cluster.yaml"] = [ray_cluster(config, section)]
    if section.reward_service:
        service = reward_service(config, section, section.reward_service)
        files["ray_service.yaml"] = [service]
    files["network_policy.yaml"] = network_policies(section)
    files["pod_monitor.yaml"] = pod_monitors(section)
    return [
        Manifest(file=file, document=document)
        for file, documents in files.items()
        for document in documents
    ]


def named(config: RunConfig) -> RunConfig:
    """The same run with `cluster.kubernetes.name` filled in."""
    section = kubernetes(config)
    name = section.name or Path(config.cluster.run_dir).name.lower().replace("_", "-")
    if not re.fullmatch(NAME_PATTERN, name) or len(name) > LONGEST_NAME:
        raise ConfigError(
            f"cluster.run_dir ends in {name}, which cannot name Kubernetes objects: give "
            f"cluster.kubernetes.name=NAME, up to {LONGEST_NAME} small letters, digits and dashes"
        )
    section = section.model_copy(update={"name": name})
    cluster = config.cluster.model_copy(update={"kubernetes": section})
    return config.model_copy(update={"cluster": cluster})


def in_cluster(config: RunConfig) -> RunConfig:
    """The run as it is in the pods: joining their cluster, each role on the nodes made for it."""
    labels, cluster = role_labels(config), config.cluster
    roles = {
        "learner": "learner",
        "rollout": "rollout",
        "reward": "scoring",
        "reference": "scoring",
    }
    update = {
        role: getattr(cluster, role).model_copy(update={"labels": labels[group]})
        for role, group in roles.items()
    }
    # The driver is on the head, whose dashboard was told this port.
    metrics = cluster.metrics.model_copy(update={"pages_port": pages_port(config)})
    changed = {"address": "auto", "metrics": metrics, **update}
    return config.model_copy(update={"cluster": cluster.model_copy(update=changed)})


def token_secret(section: KubernetesConfig, values: dict[str, str]) -> Document:
    """The Secret with the tokens; for a pipe into kubectl, never for a file."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": section.token_secret, "namespace": section.namespace},
        "type": "Opaque",
        "stringData": values,
    }


def _check(config: RunConfig, section: KubernetesConfig) -> None:
    """Refuse what pods cannot do, one line for each mistake."""
    errors = [
        f"{name}={value} is not in the pods: it must lie below {section.mount_path} "
        "(cluster.kubernetes.mount_path), where the claim is mounted"
        for name, value in path_settings(config)
        if "://" not in value  # checkpoints may be in a bucket
        and (not value.startswith(f"{section.mount_path}/") or ".." in Path(value).parts)
    ]
    if config.cluster.sync.transport == "ipc":
        errors.append(
            "cluster.sync.transport=ipc needs learner and engine in one pod, and they have pods of "
            "their own: use auto or nccl"
        )
    if errors:
        raise ConfigError("\n".join(errors))


def _config_map(config: RunConfig, section: KubernetesConfig) -> Document:
    name = str(section.name)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"{name}-config",
            "namespace": section.namespace,
            "labels": instance_labels(name),
        },
        "data": {Path(CONFIG_FILE).name: to_yaml(in_cluster(config))},
    }


def _claim(section: KubernetesConfig, gib: int) -> Document:
    spec: Document = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": f"{gib}Gi"}},
    }
    if section.storage_class:
        spec["storageClassName"] = section.storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        # No instance label: other runs keep their folders on it as well.
        "metadata": {"name": section.claim, "namespace": section.namespace},
        "spec": spec,
    }
