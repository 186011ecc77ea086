"""RayJob, RayCluster and RayService of a run."""

import math
from importlib.metadata import version
from pathlib import Path

import yaml

from cluster.k8s.groups import MARKET, Group, gpus_for, role_labels, run_groups
from cluster.k8s.pods import (
    CONFIG_FILE,
    Document,
    head_group,
    instance_labels,
    submitter,
    worker_group,
)
from cluster.k8s.text import dump
from configs.kubernetes import KubernetesConfig, RedisConfig, RewardServicePods
from configs.schema import RunConfig

RUNTIME_ENV = Path(__file__).parents[2] / "runtime_env.yaml"

PAGES_PORT = 8299
"""Of the pages of a run on the head, for its dashboard alone."""
JOB_STOP_S = 8
"""Seconds that a stopped job has to end its actors and write its report; Ray's default is 3."""


def pages_port(config: RunConfig) -> int | None:
    """Of the run's pages on the head; None where nobody is shown the run."""
    metrics = config.cluster.metrics
    return (metrics.pages_port or PAGES_PORT) if metrics.enabled else None


def ray_job(config: RunConfig, section: KubernetesConfig) -> Document:
    """A run with a cluster of its own; each try after a failure goes on in a new one."""
    variables = yaml.safe_load(RUNTIME_ENV.read_text())["env_vars"]
    variables |= {"RAY_JOB_STOP_WAIT_TIME_S": str(JOB_STOP_S)}
    cluster = _cluster_spec(section, str(section.name), run_groups(config), pages_port(config))
    spec: Document = {
        # One command: KubeRay pastes it into a shell script, where `;` or `&&` would end it.
        "entrypoint": f"attune k8s start {CONFIG_FILE}",
        "runtimeEnvYAML": dump({"env_vars": variables}),
        "metadata": {"attune_run": str(section.name)},
        "submissionMode": "K8sJobMode",
        "submitterPodTemplate": submitter(section, str(section.name)),
        "backoffLimit": section.backoff_limit,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": section.ttl_s,
    }
    if section.deadline_s:
        spec["activeDeadlineSeconds"] = section.deadline_s
    return _object("RayJob", section, str(section.name), spec | {"rayClusterSpec": cluster})


def ray_cluster(config: RunConfig, section: KubernetesConfig) -> Document:
    """A cluster that stays, for runs that `ray job submit` brings."""
    spec = _cluster_spec(section, str(section.name), run_groups(config), pages_port(config))
    return _object("RayCluster", section, str(section.name), spec)


def reward_service(
    config: RunConfig, section: KubernetesConfig, pods: RewardServicePods
) -> Document:
    """The run's rewards as a Ray Serve application with a cluster of its own."""
    name, replica = f"{section.name}-rewards", config.cluster.reward
    replicas = config.cluster.reward_service
    least = math.ceil(replicas.min_replicas / pods.per_pod)
    group = Group(
        name="rewards",
        labels=role_labels(config)["scoring"] | {MARKET: "on-demand"},
        start=least,
        least=least,
        most=math.ceil(replicas.max_replicas / pods.per_pod),
        cpus=math.ceil(pods.per_pod * replica.cpus_per_worker) or 1,
        gpus=gpus_for([replica.gpus_per_worker] * pods.per_pod),
        memory_gib=pods.memory_gib,
        placing=pods,
    )
    serve = {
        "http_options": {"host": "0.0.0.0", "port": 8000},
        "applications": [
            {
                "name": "rewards",
                "import_path": "cluster.serve.app:build",
                "route_prefix": "/",
                # The run may name this very service, which judges by itself.
                "args": {"config": CONFIG_FILE, "overrides": ["feedback.service=null"]},
            }
        ],
    }
    spec: Document = {
        "serveConfigV2": dump(serve),
        # The head has no replicas, so requests need not go there.
        "excludeHeadPodFromServeSvc": True,
        "upgradeStrategy": {"type": "NewCluster"},
        "rayClusterConfig": _cluster_spec(section, name, [group]),
    }
    return _object("RayService", section, name, spec)


def _cluster_spec(
    section: KubernetesConfig, instance: str, groups: list[Group], pages: int | None = None
) -> Document:
    """What RayJob, RayCluster and RayService have in common; `pages`: port of a run's pages."""
    autoscaled = any(group.is_elastic for group in groups)
    spec: Document = {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token", "secretName": section.token_secret},
        "enableInTreeAutoscaling": autoscaled,
    }
    if autoscaled:
        spec["autoscalerOptions"] = {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": section.idle_s,
            "resources": {
                "limits": {"cpu": "500m", "memory": "1Gi"},
                "requests": {"cpu": "500m", "memory": "1Gi"},
            },
        }
    if section.redis:
        spec["gcsFaultToleranceOptions"] = _redis(section.redis)
    return spec | {
        "headGroupSpec": head_group(section, instance, pages),
        "workerGroupSpecs": [
            worker_group(section, instance, group, autoscaled=autoscaled) for group in groups
        ],
    }


def _redis(redis: RedisConfig) -> Document:
    # Without `externalStorageNamespace` the tables are the cluster's own: a new try of a RayJob
    # starts with empty ones.
    options: Document = {"redisAddress": redis.address}
    if redis.secret:
        key = {"name": redis.secret, "key": "password"}
        options["redisPassword"] = {"valueFrom": {"secretKeyRef": key}}
    return options


def _object(kind: str, section: KubernetesConfig, name: str, spec: Document) -> Document:
    labels, annotations = instance_labels(name), {}
    if section.queue:
        labels["kueue.x-k8s.io/queue-name"] = section.queue
        if section.queue_priority:
            labels["kueue.x-k8s.io/priority-class"] = section.queue_priority
        cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
        if cluster["enableInTreeAutoscaling"]:
            # Or Kueue would not let the autoscaler add pods to what it has admitted.
            annotations["kueue.x-k8s.io/elastic-job"] = "true"
    metadata: Document = {"name": name, "namespace": section.namespace, "labels": labels}
    if annotations:
        metadata["annotations"] = annotations
    return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": metadata, "spec": spec}
