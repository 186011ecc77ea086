"""A long run of tiny steps: whether any of its processes grows.

    python -m tests.faults.leaks [--steps 2000] [--every 10] [--readings FILE]

Every few seconds memory (private bytes), descriptors and threads of each process of the run are
read, and what Ray's object store holds. Growth is the slope of a line through the second half of
the run, in units per 1,000 steps, with the half width of its 95 % interval. One JSON line per role.
"""

import argparse
import json
import math
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import numpy as np
import psutil
from ray._private.internal_api import node_stats
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue] - compiled

from rl.world.generate import Sizes, write_world
from rl.world.model import write_model
from tests.integration.loop import tiny_run
from tests.integration.processes import read_steps
from tests.integration.test_run import start

MIB = 1 << 20
BOUNDS = {"private_mib": 10.0, "descriptors": 2.0, "threads": 1.0}
"""Growth per 1,000 steps that is taken for none."""
FEWEST_READINGS = 10
"""In the second half of the run; a slope through fewer says nothing."""
STORE = "object store"
EXPECTED = ("attune", "engine core", "Collector", "RayTrainWorker", "gcs_server", STORE)
"""Of these a slope must come out, or the run has shown nothing."""


def role_of(process: psutil.Process) -> str:
    """A name that stays the same over the life of a process."""
    words = process.cmdline()
    text = words[0] if words else process.name()
    if text.startswith("ray::"):
        return text.partition(".")[0].removeprefix("ray::")
    if "EngineCore" in " ".join(words):
        return "engine core"
    name = Path(text).name
    return Path(words[1]).name if len(words) > 1 and "python" in name else name


def reading(process: psutil.Process) -> dict[str, float]:
    """Private memory, descriptors and threads."""
    return {
        "private_mib": process.memory_full_info().uss / MIB,
        "descriptors": float(process.num_fds()),
        "threads": float(process.num_threads()),
    }


def store_mib(run: psutil.Process) -> float:
    """What the object store of the run's own Ray holds, as its raylet says.

    Asked without joining: `ray.init` would look for the head at another address than loopback, and
    leave a trace in it each time.
    """
    words = (word for child in run.children(recursive=True) for word in child.cmdline())
    head = next(word.partition("=")[2] for word in words if word.startswith("--gcs-address="))
    (node,) = GcsClient(address=head).get_all_node_info().values()
    stats: Any = node_stats(
        node.node_manager_address, node.node_manager_port, include_memory_info=False
    )
    return stats.store_stats.object_store_bytes_used / MIB


def slope(steps: list[float], values: list[float]) -> tuple[float, float]:
    """Growth per 1,000 steps by least squares, and the half width of its 95 % interval."""
    x, y = np.asarray(steps) / 1000, np.asarray(values)
    fitted = np.polyfit(x, y, 1)
    rest = y - np.polyval(fitted, x)
    spread = math.sqrt(float(rest @ rest) / max(1, len(x) - 2))
    return float(fitted[0]), 1.96 * spread / max(1e-9, float(np.std(x)) * math.sqrt(len(x)))


def main() -> int:
    """Run, read, fit."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.leaks")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=float, default=10.0)
    parser.add_argument("--readings", type=Path, help="JSON file to write every reading to")
    options = parser.parse_args()
    series: dict[tuple[int, str, str], list[tuple[float, float]]] = defaultdict(list)
    with TemporaryDirectory(prefix="leaks-") as name:
        folder = Path(name)
        tiny = Sizes(**(dict.fromkeys(Sizes.__dataclass_fields__, 8) | {"prompts": 200}))
        prompts = write_world(folder / "world", 0, tiny)["prompts"]
        write_model(folder / "model", seed=0)
        config = tiny_run(
            folder / "model", prompts, folder / "run", f"algorithm.num_steps={options.steps}",
            "data.prompts_per_step=2", "data.samples_per_prompt=2", "algorithm.max_staleness=1",
            "data.sampling.max_new_tokens=8", "cluster.checkpoint.interval=50",
        )  # fmt: skip
        process = start(config)
        try:
            whole = psutil.Process(process.pid)
            while process.poll() is None:
                time.sleep(options.every)
                step = float((read_steps(folder / "run") or [0])[-1])
                if not step:
                    continue
                for one in [whole, *whole.children(recursive=True)]:
                    try:
                        for what, value in reading(one).items():
                            series[one.pid, role_of(one), what].append((step, value))
                    except psutil.Error:
                        continue
                try:
                    series[0, STORE, "private_mib"].append((step, store_mib(whole)))
                except (psutil.Error, StopIteration, grpc.RpcError):
                    continue
            output = process.communicate()[0]
            assert process.returncode == 0, output
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
    if options.readings:
        named = {f"{pid} {role} {what}": points for (pid, role, what), points in series.items()}
        options.readings.write_text(json.dumps(named))
    return judged(series, options.steps)


def judged(series: dict[tuple[int, str, str], list[tuple[float, float]]], num_steps: int) -> int:
    """Print what grows by how much; 1 where that is more than nothing."""
    is_flat, judged_roles = True, set[str]()
    for (_, role, what), points in sorted(series.items(), key=lambda item: item[0][1:]):
        late = [(step, value) for step, value in points if step >= num_steps / 2]
        if len(late) < FEWEST_READINGS:
            continue
        judged_roles.add(role)
        growth, half = slope([s for s, _ in late], [v for _, v in late])
        is_fine = growth <= BOUNDS[what]
        is_flat &= is_fine
        print(json.dumps({
            "role": role, "what": what, "first": round(late[0][1], 1),
            "last": round(late[-1][1], 1), "per_1000_steps": round(growth, 2),
            "half_width": round(half, 2), "bound": BOUNDS[what], "is_flat": is_fine,
            "readings": len(late),
        }), flush=True)  # fmt: skip
    missing = [role for role in EXPECTED if role not in judged_roles]
    is_flat &= not missing
    print(json.dumps({"steps": num_steps, "is_flat": is_flat, "not_read": missing}))
    return 0 if is_flat else 1


if __name__ == "__main__":
    sys.exit(main())
