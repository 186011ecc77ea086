"""What it costs to watch a run: step time with and without, in turn, in one run.

For some seconds everything that watches is on, then off, and so on: the monitor and the pages'
server are stopped (SIGSTOP) and `telemetry/` is taken away, so that nobody tells anything. vLLM's
own metrics cannot be switched while an engine lives; the benchmark `rollout` has them on and off.
"""

import json
import random
import signal
import statistics
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from rl.world.model import write_model
from rl.world.replies import draw_request, write_prompt
from tests.integration.loop import tiny_run
from tests.integration.test_run import start

NUM_STEPS = 240
TURN_S = 15.0
WATCHERS = ("ray::Monitor", "cluster.pages")
"""Parts of the command lines of the processes that only watch."""


def watching(folder: Path) -> dict[str, Any]:
    """A run of the public command at the demo's batch size."""
    write_model(folder / "model")
    rng = random.Random(0)
    rows = [{"prompt": write_prompt(rng, *draw_request(rng))} for _ in range(200)]
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tiny_run(
        folder / "model", prompts, folder / "run",
        "data.prompts_per_step=32", "data.sampling.max_new_tokens=32",
        f"algorithm.num_steps={NUM_STEPS}", "cluster.rollout.max_num_seqs=128",
        "cluster.rollout.cpus_per_engine=2", "cluster.learner.cpus_per_worker=2",
        "cluster.dashboard=true", "cluster.metrics.loggers.tensorboard={}",
    )  # fmt: skip
    process = start(config)
    switch = Switch(psutil.Process(process.pid), folder / "run")
    output = process.communicate()[0]
    switch.stop()
    assert process.returncode == 0, output
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().split("\n")
            if line]  # fmt: skip
    on, off = switch.sorted_steps(rows[5:])
    return {
        "on_over_off": round(statistics.median(on) / statistics.median(off), 4),
        "interval_95": [round(edge, 4) for edge in _interval(on, off)],
        "median_on_s": round(statistics.median(on), 4),
        "median_off_s": round(statistics.median(off), 4),
        "steps_on": len(on),
        "steps_off": len(off),
        "cpu_share_of_watchers": round(switch.cpu_share(), 5),
        "cores": psutil.cpu_count(),
    }


def _interval(on: list[float], off: list[float]) -> tuple[float, float]:
    """95 % of the ratio of medians, by drawing both samples again 4,000 times."""
    rng = np.random.default_rng(0)
    drawn = [np.median(rng.choice(x, (4000, len(x))), axis=1) for x in (on, off)]
    low, high = np.quantile(drawn[0] / drawn[1], [0.025, 0.975])
    return float(low), float(high)


class Switch:
    """Turns all watching on and off while a run goes on."""

    def __init__(self, run: psutil.Process, run_dir: Path) -> None:
        self.run, self.run_dir = run, run_dir
        self.turns: list[tuple[float, bool]] = []
        """(unix second, whether watching is on from then on)."""
        self.cpu_s = self.on_s = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._turn, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Leave everything on."""
        self._stopped.set()
        self._thread.join()

    def _turn(self) -> None:
        while not (self.run_dir / "metrics.jsonl").exists():
            if self._stopped.wait(0.5):
                return
        is_on = True
        while not self._stopped.wait(TURN_S):
            is_on = not is_on
            self._set(is_on=is_on)
        if not is_on:
            self._set(is_on=True)

    def _set(self, *, is_on: bool) -> None:
        shown, hidden = self.run_dir / "telemetry", self.run_dir / "telemetry.off"
        watchers = self._watchers()
        if is_on:
            hidden.rename(shown)
        for watcher in watchers:
            watcher.send_signal(signal.SIGCONT if is_on else signal.SIGSTOP)
        if not is_on:
            shown.rename(hidden)
            if self.turns:
                self.on_s += time.time() - self.turns[-1][0]
                self.cpu_s += self._cpu_s(watchers) - self._before
        self._before = self._cpu_s(watchers)
        self.turns.append((time.time(), is_on))

    def _watchers(self) -> list[psutil.Process]:
        found = []
        for child in self.run.children(recursive=True):
            words = " ".join(child.cmdline())
            if any(part in words for part in WATCHERS):
                found.append(child)
        assert found, "nobody watches this run"
        return found

    def _cpu_s(self, watchers: list[psutil.Process]) -> float:
        times = [watcher.cpu_times() for watcher in watchers]
        return sum(t.user + t.system for t in times)

    def cpu_share(self) -> float:
        """Of one core, what the watching processes took while they were on."""
        return self.cpu_s / self.on_s if self.on_s else float("nan")

    def sorted_steps(self, rows: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
        """Seconds of the steps that lay in turns with watching on, and of those with it off."""
        on: list[float] = []
        off: list[float] = []
        edges = [(0.0, True), *self.turns, (float("inf"), True)]
        for row in rows:
            end = row["unix_time"]
            start = end - row["time/step"]
            for (since, is_on), (until, _) in pairwise(edges):
                if since < start and end < until:
                    (on if is_on else off).append(row["time/step"])
        return on, off
