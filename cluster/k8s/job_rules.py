"""Rules of RayJob and RayService alone."""

import shlex
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import yaml

from cluster.k8s.pods import Document
from cluster.k8s.schemas import Finding

QUEUE = "kueue.x-k8s.io/queue-name"
"""Label that hands a job over to Kueue."""

RUNTIME_ENV = {
    "working_dir", "py_modules", "py_executable", "pip", "uv", "conda", "env_vars", "excludes",
    "image_uri", "container", "worker_process_setup_hook", "config", "nsight", "rocprof_sys",
}  # fmt: skip
"""What Ray reads in a runtime environment."""

ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
"""What is deleted first may not wait longer than what is deleted later."""


def _deletion(document: Document) -> Iterator[Finding]:
    spec = document["spec"]
    shuts_down = spec.get("shutdownAfterJobFinishes") is True
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not shuts_down:
        message = "needs shutdownAfterJobFinishes: true"
        yield Finding(path="spec.ttlSecondsAfterFinished", message=message)
    strategy = spec.get("deletionStrategy")
    if strategy is None:
        return
    rules, legacy = strategy.get("deletionRules"), {"onSuccess", "onFailure"} & strategy.keys()
    if rules and shuts_down:
        message = "excludes shutdownAfterJobFinishes; keep one"
        yield Finding(path="spec.deletionStrategy.deletionRules", message=message)
    if rules and legacy:
        message = f"excludes {' and '.join(sorted(legacy))}; keep the rules"
        yield Finding(path="spec.deletionStrategy.deletionRules", message=message)
    if not rules and len(legacy) < 2:
        message = "needs deletionRules, or both onSuccess and onFailure"
        yield Finding(path="spec.deletionStrategy", message=message)
    for index, rule in enumerate(rules or []):
        yield from _deletion_rule(f"spec.deletionStrategy.deletionRules[{index}]", rule, spec)
    yield from _deletion_order(rules or [])


def _deletion_rule(path: str, rule: Document, spec: Document) -> Iterator[Finding]:
    policy, condition = rule["policy"], rule["condition"]
    if len({"jobStatus", "jobDeploymentStatus"} & condition.keys()) != 1:
        message = "needs one of jobStatus and jobDeploymentStatus"
        yield Finding(path=f"{path}.condition", message=message)
    cluster = spec.get("rayClusterSpec", {})
    if policy == "DeleteWorkers" and cluster.get("enableInTreeAutoscaling"):
        message = "is DeleteWorkers, which the autoscaler would undo; use DeleteCluster"
        yield Finding(path=f"{path}.policy", message=message)
    if policy in ("DeleteWorkers", "DeleteCluster") and spec.get("clusterSelector"):
        message = f"is {policy}, but the cluster is not this job's own (clusterSelector)"
        yield Finding(path=f"{path}.policy", message=message)


def _deletion_order(rules: list[Document]) -> Iterator[Finding]:
    waits: dict[str, dict[str, int]] = {}
    for index, rule in enumerate(rules):
        condition = rule["condition"]
        status = condition.get("jobStatus") or condition.get("jobDeploymentStatus") or "?"
        seconds = waits.setdefault(status, {})
        if rule["policy"] in seconds:
            message = f"is a second {rule['policy']} for {status}"
            yield Finding(path=f"spec.deletionStrategy.deletionRules[{index}]", message=message)
        seconds[rule["policy"]] = condition.get("ttlSeconds", 0)
    for status, seconds in waits.items():
        present = [policy for policy in ORDER if policy in seconds]
        for first, second in pairwise(present):
            if seconds[first] > seconds[second]:
                message = f"for {status}, {second} comes before {first}; raise its ttlSeconds"
                yield Finding(path="spec.deletionStrategy.deletionRules", message=message)


def _cluster_choice(document: Document) -> Iterator[Finding]:
    spec = document["spec"]
    selector = spec.get("clusterSelector")
    if not selector and "rayClusterSpec" not in spec:
        message = "one of rayClusterSpec and clusterSelector is needed"
        yield Finding(path="spec", message=message)
    if not selector:
        return
    refused = {
        "rayClusterSpec": "the job's own cluster",
        "suspend": "a job that can be suspended",
        "backoffLimit": "retries, each of which would be a new cluster",
    }
    for field, what in refused.items():
        if spec.get(field):
            message = f"excludes {what}: drop spec.{field}"
            yield Finding(path="spec.clusterSelector", message=message)


def _submission(document: Document) -> Iterator[Finding]:
    spec = document["spec"]
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
        message = "is not allowed in InteractiveMode"
        yield Finding(path="spec.backoffLimit", message=message)
    if mode == "SidecarMode":
        for field in ("submitterPodTemplate", "submitterConfig", "clusterSelector"):
            if field in spec:
                yield Finding(path=f"spec.{field}", message="is not allowed in SidecarMode")
        head = spec.get("rayClusterSpec", {}).get("headGroupSpec")
        policy = head["template"]["spec"].get("restartPolicy", "Never") if head else "Never"
        if policy != "Never":
            path = "spec.rayClusterSpec.headGroupSpec.template.spec.restartPolicy"
            yield Finding(path=path, message=f"is {policy}; SidecarMode needs Never")
    template = spec.get("submitterPodTemplate")
    if template and template["spec"].get("restartPolicy") not in ("Never", "OnFailure"):
        path = "spec.submitterPodTemplate.spec.restartPolicy"
        yield Finding(path=path, message="a Kubernetes Job needs Never or OnFailure")


def _entrypoint(document: Document) -> Iterator[Finding]:
    spec = document["spec"]
    text, mode = spec.get("entrypoint", ""), spec.get("submissionMode", "K8sJobMode")
    if mode == "InteractiveMode":
        return
    if not text.strip():
        yield Finding(path="spec.entrypoint", message="is missing; such as attune k8s start FILE")
        return
    try:
        lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
    except ValueError as error:
        yield Finding(path="spec.entrypoint", message=f"is not a command ({error})")
        return
    operators = [word for word in words if word and set(word) <= set(";&|<>()")]
    if operators and mode == "K8sJobMode":
        message = f"has a bare {operators[0]}, which ends the submitter's own script; use sh -c '…'"
        yield Finding(path="spec.entrypoint", message=message)


def _suspension(document: Document) -> Iterator[Finding]:
    spec = document["spec"]
    if spec.get("shutdownAfterJobFinishes") is True:
        return
    if spec.get("suspend"):
        yield Finding(path="spec.suspend", message="needs shutdownAfterJobFinishes: true")
    if QUEUE in document["metadata"].get("labels", {}):
        message = "must be true, or Kueue never gets the quota back"
        yield Finding(path="spec.shutdownAfterJobFinishes", message=message)


def _runtime_env(document: Document) -> Iterator[Finding]:
    path, text = "spec.runtimeEnvYAML", document["spec"].get("runtimeEnvYAML")
    if text is None:
        return
    content, problem = _mapping(text)
    if problem:
        yield Finding(path=path, message=problem)
        return
    for name in sorted(content.keys() - RUNTIME_ENV):
        message = f"{name} is not part of a runtime environment: {', '.join(sorted(RUNTIME_ENV))}"
        yield Finding(path=path, message=message)
    for name, value in content.get("env_vars", {}).items():
        if not isinstance(value, str):
            yield Finding(path=path, message=f"env_vars.{name} is {value!r}; write it in quotes")


def _serve_config(document: Document) -> Iterator[Finding]:
    path, text = "spec.serveConfigV2", document["spec"].get("serveConfigV2")
    if text is None:
        yield Finding(path=path, message="is missing; it says which application is served")
        return
    content, problem = _mapping(text)
    applications = content.get("applications")
    if problem or not isinstance(applications, list) or not applications:
        yield Finding(path=path, message=problem or "has no applications")
        return
    for index, application in enumerate(applications):
        module, _, name = str(application.get("import_path", "")).partition(":")
        if not module or not name:
            message = f"applications[{index}].import_path should be MODULE:NAME"
            yield Finding(path=path, message=message)


def _head_service(document: Document) -> Iterator[Finding]:
    head = document["spec"]["rayClusterConfig"]["headGroupSpec"]
    if head.get("headService", {}).get("metadata", {}).get("name"):
        path = "spec.rayClusterConfig.headGroupSpec.headService.metadata.name"
        yield Finding(path=path, message="is not allowed in a RayService")


def _mapping(text: str) -> tuple[dict[str, Any], str]:
    """The mapping that YAML text holds, or what is wrong with it."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return {}, f"is not YAML: {' '.join(str(error).split())[:120]}"
    return (content, "") if isinstance(content, dict) else ({}, "is not a mapping")


JOB_RULES: tuple[Callable[[Document], Iterator[Finding]], ...] = (
    _deletion,
    _cluster_choice,
    _submission,
    _entrypoint,
    _suspension,
    _runtime_env,
)
SERVICE_RULES: tuple[Callable[[Document], Iterator[Finding]], ...] = (_serve_config, _head_service)
