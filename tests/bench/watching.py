"""What it costs to watch a run: step time with and without, in turn, in one run.

The monitor and the pages' server are stopped (SIGSTOP) and `telemetry/` is taken away, so that
nobody tells anything. vLLM's own metrics cannot be switched while an engine lives; the benchmark
`rollout` has them on and off.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from tests.bench.switched import BLOCK, FIRST, SAME_WORK, Switch, run_of_demo_size
from tests.integration.processes import free_port

NUM_BLOCKS = 120
WATCHERS = ("ray::Monitor", "cluster.pages")
FLOODED_BLOCKS = 40
FLOOD = """
import http.client, sys, threading
def ask(host, first):
    connection = http.client.HTTPConnection(host, timeout=60)
    for index in range(first, 1000, 8):
        part = ("", "run/run/", "run/run/curves", "run/run/rollouts")[index % 4]
        connection.request("GET", "/attune/" + part, headers={"Accept-Encoding": "gzip"})
        answer = connection.getresponse()
        assert answer.read() and answer.status in (200, 503)
threads = [threading.Thread(target=ask, args=(sys.argv[1], first)) for first in range(8)]
for one in threads: one.start()
for one in threads: one.join()
"""
"""Eight at a time; a client that takes little itself, as it is on the run's own two cores."""


def watching(folder: Path) -> dict[str, Any]:
    """A run of the public command at the demo's batch size."""
    config = run_of_demo_size(
        folder, FIRST + BLOCK * NUM_BLOCKS + 1, "cluster.dashboard=true",
        "cluster.checkpoint.interval=1000", "cluster.metrics.loggers.tensorboard={}",
        *SAME_WORK, num_prompts=1,
    )  # fmt: skip
    named = {"watchers": WATCHERS, "ray_s_agent": ("ray::DashboardAgent",)}
    switch = Switch(config, _watch, NUM_BLOCKS, named)
    on = [block for block in switch.blocks if block.is_on]
    return {
        "step_time_on_over_off": switch.ratio("step"),
        "quiet_steps_on_over_off": switch.quiet_ratio(),
        "cpu_on_over_off": switch.ratio("cpu"),
        "step_s": round(sum(b.taken["step"] for b in on) / len(on) / BLOCK, 3),
        "spread_of_blocks": switch.spread(),
        "steps": BLOCK * NUM_BLOCKS,
        **{f"cores_of_{name}": switch.cores(name, on) for name in named},
        "cores": psutil.cpu_count(),
    }


def _watch(switch: Switch, is_on: bool) -> None:
    shown, hidden = switch.run_dir / "telemetry", switch.run_dir / "telemetry.off"
    if shown.exists() is is_on:
        return
    if is_on:
        hidden.rename(shown)
    for watcher in switch.find(WATCHERS):
        watcher.send_signal(signal.SIGCONT if is_on else signal.SIGSTOP)
    if not is_on:
        shown.rename(hidden)


def flood(folder: Path) -> dict[str, Any]:
    """The same run; 1,000 requests for pages at the begin of every block that is on."""
    port = free_port()
    config = run_of_demo_size(
        folder, FIRST + BLOCK * FLOODED_BLOCKS + 1, f"cluster.metrics.pages_port={port}",
        "cluster.checkpoint.interval=1000", *SAME_WORK, num_prompts=1,
    )  # fmt: skip
    asking: list[subprocess.Popen[bytes]] = []

    def turn(switch: Switch, is_on: bool) -> None:
        if is_on and switch.process.poll() is None:
            words = [sys.executable, "-c", FLOOD, f"127.0.0.1:{port}"]
            asking.append(subprocess.Popen(words, preexec_fn=lambda: os.nice(19)))

    switch = Switch(config, turn, FLOODED_BLOCKS, {"pages": ("cluster.pages",)})
    return {
        "step_time_on_over_off": switch.ratio("step"),
        "quiet_steps_on_over_off": switch.quiet_ratio(),
        "spread_of_blocks": switch.spread(),
        "steps": BLOCK * FLOODED_BLOCKS,
        "floods": len(asking),
        "answered": all(one.wait() == 0 for one in asking),
        "cores_of_pages": switch.cores("pages", [b for b in switch.blocks if b.is_on]),
    }
