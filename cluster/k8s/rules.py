"""What KubeRay, Kueue and a run ask of Ray objects and no schema says: one rule a function, each
answering with where and what.

Rules see documents that passed their schema, so the types are right; fields may be missing.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from packaging.version import InvalidVersion, Version

from cluster.k8s.job_rules import JOB_RULES, QUEUE, SERVICE_RULES
from cluster.k8s.pod_rules import group_findings
from cluster.k8s.pods import Document
from cluster.k8s.schemas import Finding

Rule = Callable[[str, Document, Document], Iterator[Finding]]
"""Path of a cluster's spec, that spec, and the whole document."""

LONGEST = {"RayCluster": 53, "RayJob": 47, "RayService": 47}
"""KubeRay makes names of services from these: six letters for the cluster, ten for the service."""

CLUSTER_AT = {
    "RayCluster": ("spec",),
    "RayJob": ("spec", "rayClusterSpec"),
    "RayService": ("spec", "rayClusterConfig"),
}

ELASTIC = "kueue.x-k8s.io/elastic-job"


def ray_findings(document: Document) -> Iterator[Finding]:
    """Every broken rule of a RayJob, RayCluster or RayService."""
    kind = document["kind"]
    yield from _name(document)
    for rule in {"RayJob": JOB_RULES, "RayService": SERVICE_RULES}.get(kind, ()):
        yield from rule(document)
    at = ".".join(CLUSTER_AT[kind])
    spec: Any = document
    for key in CLUSTER_AT[kind]:
        spec = spec.get(key)
        if spec is None:
            return
    for rule in CLUSTER_RULES:
        yield from rule(at, spec, document)
    yield from group_findings(at, spec)


def is_autoscaled(spec: Document) -> bool:
    """Whether KubeRay starts an autoscaler beside the head."""
    return spec.get("enableInTreeAutoscaling") is True


def is_version_2(spec: Document) -> bool:
    """Whether that autoscaler is the second one."""
    return is_autoscaled(spec) and spec.get("autoscalerOptions", {}).get("version") == "v2"


def groups_of(at: str, spec: Document) -> Iterator[tuple[str, Document]]:
    """Head and worker groups with their paths."""
    yield f"{at}.headGroupSpec", spec["headGroupSpec"]
    for index, group in enumerate(spec.get("workerGroupSpecs", [])):
        yield f"{at}.workerGroupSpecs[{index}]", group


def head_env(spec: Document) -> dict[str, Document]:
    """Environment variables of the head's Ray container, by name."""
    container = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    return {entry["name"]: entry for entry in container.get("env", [])}


def _name(document: Document) -> Iterator[Finding]:
    name, kind = document["metadata"]["name"], document["kind"]
    if len(name) > LONGEST[kind]:
        message = f"has {len(name)} letters; a {kind} has {LONGEST[kind]} at most"
        yield Finding(path="metadata.name", message=message)
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        message = f"is {name}; small letters, digits and dashes, beginning with a letter"
        yield Finding(path="metadata.name", message=message)


def _autoscaler(at: str, spec: Document, document: Document) -> Iterator[Finding]:
    if not is_autoscaled(spec):
        if "autoscalerOptions" in spec:
            message = "has no effect without enableInTreeAutoscaling: true"
            yield Finding(path=f"{at}.autoscalerOptions", message=message)
        return
    version = spec.get("autoscalerOptions", {}).get("version")
    if version != "v2":
        message = f"is {version or 'not set'}; v2 is needed for priorities, labels and drains"
        yield Finding(path=f"{at}.autoscalerOptions.version", message=message)


def _autoscaler_variable(at: str, spec: Document, document: Document) -> Iterator[Finding]:
    if "RAY_enable_autoscaler_v2" in head_env(spec):
        yield Finding(
            path=f"{at}.headGroupSpec.template.spec.containers[0].env",
            message="RAY_enable_autoscaler_v2 is set by KubeRay; leave it out and use "
            "enableInTreeAutoscaling with autoscalerOptions.version",
        )


def _restart_policy(at: str, spec: Document, document: Document) -> Iterator[Finding]:
    if not is_version_2(spec):
        return
    for path, group in groups_of(at, spec):
        policy = group["template"]["spec"].get("restartPolicy", "Never")
        if policy != "Never":
            yield Finding(
                path=f"{path}.template.spec.restartPolicy",
                message=f"is {policy}; autoscaler v2 replaces pods itself: Never, or leave it out",
            )


def _idle_head(at: str, spec: Document, document: Document) -> Iterator[Finding]:
    """Actors on the head would die with it, and it would die of them."""
    head = spec["headGroupSpec"]
    cpus = head.get("resources", {}).get("CPU", head.get("rayStartParams", {}).get("num-cpus"))
    if cpus != "0":
        yield Finding(
            path=f"{at}.headGroupSpec.rayStartParams.num-cpus",
            message=f"is {cpus or 'not set'}, so actors run on the head; give '0'",
        )
    limits = head["template"]["spec"]["containers"][0].get("resources", {}).get("limits", {})
    if any(name.endswith("/gpu") for name in limits):
        yield Finding(
            path=f"{at}.headGroupSpec.template.spec.containers[0].resources.limits",
            message="asks for a GPU that nothing on the head uses",
        )


def _start_params(at: str, spec: Document, document: Document) -> Iterator[Finding]:
    for path, group in groups_of(at, spec):
        params = group.get("rayStartParams", {})
        if "labels" in params:
            both = " (which is there as well)" if group.get("labels") else ""
            yield Finding(
                path=f"{path}.rayStartParams.labels",
                message=f"is refused; labels go into the group's own field `labels`{both}",
            )
        double = {"num-cpus", "num-gpus", "memory", "resources"} & params.keys()
        if double and group.get("resources"):
            yield Finding(
                path=f"{path}.resources",
                message=f"is given beside rayStartParams {', '.join(sorted(double))}; keep one",
            )


def _replicas(at: str, spec: Document, document: Document) -> Iterator[Finding]:
    names: set[str] = set()
    for path, group in list(groups_of(at, spec))[1:]:
        least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        replicas = group.get("replicas", least)
        if least > most:
            message = f"is {least}, above maxReplicas {most}"
            yield Finding(path=f"{path}.minReplicas", message=message)
        elif not least <= replicas <= most:
            message = f"is {replicas}, outside minReplicas {least} to maxReplicas {most}"
            yield Finding(path=f"{path}.replicas", message=message)
        if least < most and not is_autoscaled(spec):
            message = f"differs from minReplicas {least}, but enableInTreeAutoscaling is not true"
            yield Finding(path=f"{path}.maxReplicas", message=message)
        if group["groupName"] in names:
            message = f"{group['groupName']} is the name of another group"
            yield Finding(path=f"{path}.groupName", message=message)
        names.add(group["groupName"])
        for field in ("priority", "idleTimeoutSeconds"):
            if field in group and not is_version_2(spec):
                message = "is read by autoscaler v2 alone, which is not on"
                yield Finding(path=f"{path}.{field}", message=message)
        if group.get("suspend") and is_autoscaled(spec):
            message = "a group cannot be suspended while the autoscaler is on"
            yield Finding(path=f"{path}.suspend", message=message)


def _tokens(at: str, spec: Document, document: Document) -> Iterator[Finding]:
    options = spec.get("authOptions", {})
    if options.get("mode") != "token":
        message = f"is {options.get('mode', 'not set')}; give token, or anyone can submit jobs"
        yield Finding(path=f"{at}.authOptions.mode", message=message)
        return
    if not options.get("secretName"):
        yield Finding(
            path=f"{at}.authOptions.secretName",
            message="is missing; name the Secret that holds the token under `auth_token`",
        )
    if options.get("enableK8sTokenAuth") and document["kind"] != "RayCluster":
        message = f"is not allowed in a {document['kind']}"
        yield Finding(path=f"{at}.authOptions.enableK8sTokenAuth", message=message)


def _ray_version(at: str, spec: Document, document: Document) -> Iterator[Finding]:
    text, path = spec.get("rayVersion", ""), f"{at}.rayVersion"
    uses_priority = any(group.get("priority") for group in spec.get("workerGroupSpecs", []))
    oldest, reason = ("2.56", "priorities need") if uses_priority else ("2.52", "tokens need")
    try:
        if Version(text) < Version(oldest):
            yield Finding(path=path, message=f"is {text}; {reason} {oldest} or later")
    except InvalidVersion:
        message = f"is {text}, not a version" if text else f"is missing; {reason} {oldest} or later"
        yield Finding(path=path, message=message)


def _fault_tolerance(at: str, spec: Document, document: Document) -> Iterator[Finding]:
    options = spec.get("gcsFaultToleranceOptions")
    annotations = document["metadata"].get("annotations", {})
    params = spec["headGroupSpec"].get("rayStartParams", {})
    found = {
        "metadata.annotations": {"ray.io/ft-enabled", "ray.io/external-storage-namespace"}
        & annotations.keys(),
        f"{at}.headGroupSpec.rayStartParams": {"redis-password", "redis-username"} & params.keys(),
        f"{at}.headGroupSpec.template.spec.containers[0].env": {
            "RAY_REDIS_ADDRESS",
            "REDIS_PASSWORD",
            "REDIS_USERNAME",
        }
        & head_env(spec).keys(),
    }
    for path, names in found.items():
        for name in sorted(names):
            message = (
                f"{name} is given beside or instead of gcsFaultToleranceOptions; use that alone"
            )
            yield Finding(path=path, message=message)
    if options is None:
        return
    if options.get("backend", "redis") == "redis" and not options.get("redisAddress"):
        message = "is missing; give host:port of Redis"
        yield Finding(path=f"{at}.gcsFaultToleranceOptions.redisAddress", message=message)
    for field in ("redisPassword", "redisUsername"):
        if "value" in options.get(field, {}):
            path = f"{at}.gcsFaultToleranceOptions.{field}.value"
            yield Finding(path=path, message="is readable here; use valueFrom.secretKeyRef")


def _queue(at: str, spec: Document, document: Document) -> Iterator[Finding]:
    metadata = document["metadata"]
    if QUEUE not in metadata.get("labels", {}):
        if QUEUE in metadata.get("annotations", {}):
            message = f"{QUEUE} is a label, not an annotation"
            yield Finding(path="metadata.annotations", message=message)
        return
    if is_autoscaled(spec) and metadata.get("annotations", {}).get(ELASTIC) != "true":
        message = f"{ELASTIC}: 'true' is missing; Kueue stops the autoscaler's pods without it"
        yield Finding(path="metadata.annotations", message=message)


CLUSTER_RULES: tuple[Rule, ...] = (
    _autoscaler,
    _autoscaler_variable,
    _restart_policy,
    _idle_head,
    _start_params,
    _replicas,
    _tokens,
    _ray_version,
    _fault_tolerance,
    _queue,
)
