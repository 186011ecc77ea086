"""Rules of the pods inside a Ray object, of other kinds, and between documents."""

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal

from cluster.k8s.pods import SHUTDOWN_S, Document
from cluster.k8s.schemas import Finding

SECRET_NAME = re.compile(r"token|password|secret|api_?key|credential", re.IGNORECASE)
"""Names of environment variables whose values do not belong into a file."""

UNITS = {"": 1, "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "k": 10**3}
UNITS |= {unit: 1000 ** (power + 2) for power, unit in enumerate("MGTPE")}
UNITS |= {f"{unit}i": 1024 ** (power + 1) for power, unit in enumerate("KMGTPE")}


def quantity(text: str | float) -> Decimal:
    """A Kubernetes quantity, such as 500m or 2Gi, as a number."""
    match = re.fullmatch(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([a-zA-Z]*)", str(text))
    assert match, text
    return Decimal(match[1]) * UNITS[match[2]]


def group_findings(at: str, spec: Document) -> Iterator[Finding]:
    """Every broken rule of the pods of a cluster."""
    yield from pod_findings(f"{at}.headGroupSpec.template", spec["headGroupSpec"]["template"])
    for index, group in enumerate(spec.get("workerGroupSpecs", [])):
        path = f"{at}.workerGroupSpecs[{index}]"
        yield from pod_findings(f"{path}.template", group["template"])
        yield from _sizes(f"{path}.template.spec.containers[0].resources", group)
        yield from _drain(path, group)
    yield from _sizes(
        f"{at}.headGroupSpec.template.spec.containers[0].resources", spec["headGroupSpec"]
    )


def pod_findings(path: str, template: Document) -> Iterator[Finding]:
    """What the API server would say against a pod, and secrets in plain sight."""
    spec = template["spec"]
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    for index, container in enumerate(spec["containers"]):
        at = f"{path}.spec.containers[{index}]"
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                message = f"{mount['name']} is not among the volumes {', '.join(sorted(volumes))}"
                yield Finding(path=f"{at}.volumeMounts", message=message)
        yield from _environment(f"{at}.env", container.get("env", []))
        yield from _image(f"{at}.image", container["image"])
        yield from _amounts(f"{at}.resources", container.get("resources", {}))


def _environment(path: str, env: list[Document]) -> Iterator[Finding]:
    seen: set[str] = set()
    for index, entry in enumerate(env):
        name = entry["name"]
        if name in seen:
            yield Finding(path=f"{path}[{index}]", message=f"{name} is given twice")
        seen.add(name)
        if "value" in entry and "valueFrom" in entry:
            yield Finding(path=f"{path}[{index}]", message=f"{name} has value and valueFrom")
        if entry.get("value") and SECRET_NAME.search(name):
            message = f"{name} is readable here; use valueFrom.secretKeyRef"
            yield Finding(path=f"{path}[{index}].value", message=message)


def _image(path: str, image: str) -> Iterator[Finding]:
    tag = image.rpartition("/")[2].partition(":")[2]
    if "@" not in image and tag in ("", "latest"):
        message = f"is {image}; name a version, or pods of one run may differ"
        yield Finding(path=path, message=message)


def _amounts(path: str, resources: Document) -> Iterator[Finding]:
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    for name, wanted in requests.items():
        limit = limits.get(name)
        if "/" in name and (limit is None or quantity(limit) != quantity(wanted)):
            message = f"{name} must be the same in limits and requests"
            yield Finding(path=f"{path}.limits", message=message)
        elif limit is not None and quantity(wanted) > quantity(limit):
            message = f"{name} {wanted} is above its limit {limit}"
            yield Finding(path=f"{path}.requests", message=message)


def _sizes(path: str, group: Document) -> Iterator[Finding]:
    """Ray counts with what limits or requests say; without them the autoscaler raises."""
    resources = group["template"]["spec"]["containers"][0].get("resources", {})
    stated = resources.get("limits", {}).keys() | resources.get("requests", {}).keys()
    for name in ("cpu", "memory"):
        if name not in stated:
            yield Finding(path=f"{path}.limits", message=f"{name} is missing; Ray plans with it")


def _drain(path: str, group: Document) -> Iterator[Finding]:
    spec = group["template"]["spec"]
    hook = spec["containers"][0].get("lifecycle", {}).get("preStop")
    if hook is None:
        if group.get("labels", {}).get("ray.io/market-type") == "spot":
            message = "is missing; pods of spot nodes need a hook that drains the Ray node"
            yield Finding(
                path=f"{path}.template.spec.containers[0].lifecycle.preStop", message=message
            )
        return
    seconds = _hook_seconds(hook)
    grace = spec.get("terminationGracePeriodSeconds", 30)
    if seconds is not None and grace < seconds + SHUTDOWN_S:
        message = (
            f"is {grace}, but the preStop hook alone takes {seconds}; give {seconds + SHUTDOWN_S} "
            "or more, or the pod is killed in its drain"
        )
        yield Finding(path=f"{path}.template.spec.terminationGracePeriodSeconds", message=message)


def _hook_seconds(hook: Document) -> int | None:
    if "sleep" in hook:
        return hook["sleep"]["seconds"]
    command = " ".join(hook.get("exec", {}).get("command", []))
    match = re.search(r"(?:--deadline-s|--deadline-remaining-seconds|\bsleep)[ =](\d+)", command)
    return int(match[1]) if match else None


def secret_findings(document: Document) -> Iterator[Finding]:
    """A Secret in a file is a secret in version control."""
    for field in ("data", "stringData"):
        for name, value in document.get(field, {}).items():
            if value:
                message = (
                    "has a value; keep secrets out of files: attune k8s secret CONFIG | "
                    "kubectl apply -f -"
                )
                yield Finding(path=f"{field}.{name}", message=message)


def pod_templates(document: Document) -> Iterator[Document]:
    """The pod templates of a Ray object, those of its worker pods and head."""
    spec = document.get("spec", {})
    cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    if "headGroupSpec" in cluster:
        yield cluster["headGroupSpec"]["template"]
        yield from (group["template"] for group in cluster.get("workerGroupSpecs", []))


def between(documents: Sequence[Document]) -> Iterator[tuple[int, Finding]]:
    """Mistakes that show only side by side; with the index of the document that is to be mended."""
    templates = [template for document in documents for template in pod_templates(document)]
    for index, document in enumerate(documents):
        check = {
            "NetworkPolicy": _lets_in_its_own,
            "PersistentVolumeClaim": _shared_by_all,
            "PodMonitor": _has_its_ports,
        }.get(document.get("kind", ""))
        if check:
            yield from ((index, finding) for finding in check(document, templates))


def _selects(selector: Document, template: Document) -> bool:
    """Whether a selector matches a pod; labels that KubeRay adds count as matching."""
    labels = template.get("metadata", {}).get("labels", {})
    wanted = selector.get("matchLabels", {}).items()
    return all(key.startswith("ray.io/") or labels.get(key) == value for key, value in wanted)


def _lets_in_its_own(policy: Document, templates: list[Document]) -> Iterator[Finding]:
    spec = policy["spec"]
    chosen = [template for template in templates if _selects(spec["podSelector"], template)]
    if not chosen or "Ingress" not in spec.get("policyTypes", ["Ingress"]):
        return
    open_to = [
        peer.get("podSelector", {})
        for rule in spec.get("ingress", [])
        if not rule.get("ports")
        for peer in rule.get("from", [{}])
        if "namespaceSelector" not in peer and "ipBlock" not in peer
    ]
    if any(not any(_selects(selector, pod) for selector in open_to) for pod in chosen):
        message = (
            "shuts the cluster's own pods out; add a rule from a podSelector with the same labels "
            "and without ports"
        )
        yield Finding(path="spec.ingress", message=message)


def _shared_by_all(claim: Document, templates: list[Document]) -> Iterator[Finding]:
    name, modes = claim["metadata"]["name"], claim["spec"]["accessModes"]
    users = [
        template
        for template in templates
        for volume in template["spec"].get("volumes", [])
        if volume.get("persistentVolumeClaim", {}).get("claimName") == name
    ]
    if len(users) > 1 and "ReadWriteMany" not in modes:
        message = f"is {', '.join(modes)}, but pods of several groups mount it: ReadWriteMany"
        yield Finding(path="spec.accessModes", message=message)


def _has_its_ports(monitor: Document, templates: list[Document]) -> Iterator[Finding]:
    selector = monitor["spec"]["selector"]
    chosen = [template for template in templates if _selects(selector, template)]
    if templates and not chosen:
        message = "matches no pod of the Ray objects here"
        yield Finding(path="spec.selector", message=message)
        return
    declared = {"metrics"} | {  # KubeRay adds that one
        str(port.get("name"))
        for template in chosen
        for container in template["spec"]["containers"]
        for port in container.get("ports", [])
    }
    for index, endpoint in enumerate(monitor["spec"]["podMetricsEndpoints"]):
        if templates and "port" in endpoint and endpoint["port"] not in declared:
            path = f"spec.podMetricsEndpoints[{index}].port"
            message = f"{endpoint['port']} is no port of its pods: {', '.join(sorted(declared))}"
            yield Finding(path=path, message=message)
