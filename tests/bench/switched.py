"""Something that is on for some steps of a run and off for as many, in turn, and what it costs.

on, off, off, on, on, off ...: of each block of steps to its neighbour, so that whatever drifts over
the run touches both alike.
"""

import json
import math
import random
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from configs.schema import RunConfig
from rl.world.model import write_model
from rl.world.replies import draw_request, write_prompt
from tests.integration.loop import tiny_run
from tests.integration.processes import read_steps
from tests.integration.test_run import start

FIRST = 6
"""Steps up to this one are left out: they open files and compile."""
BLOCK = 2
LOOK_S = 0.02


SAME_WORK = ("data.sampling.temperature=0.01", "algorithm.optimizer.learning_rate=1e-12")
"""With one prompt, every step does the same: what differs in their time is the machine's doing."""


def run_of_demo_size(
    folder: Path, num_steps: int, *overrides: str, num_prompts: int = 200
) -> RunConfig:
    """A run on an untrained model of the built-in world, in `folder`/run."""
    write_model(folder / "model")
    rng = random.Random(0)
    texts = [write_prompt(rng, *draw_request(rng)) for _ in range(num_prompts)]
    rows = [{"prompt": texts[index % num_prompts]} for index in range(200)]
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tiny_run(
        folder / "model", prompts, folder / "run",
        f"data.validation={prompts}", "data.prompts_per_step=32", "data.sampling.max_new_tokens=32",
        f"algorithm.num_steps={num_steps}", "cluster.rollout.max_num_seqs=128",
        "cluster.rollout.cpus_per_engine=2", "cluster.learner.cpus_per_worker=2", *overrides,
    )  # fmt: skip


@dataclass(kw_only=True)
class Block:
    """Steps one after another, all with it on or all with it off."""

    first: int
    is_on: bool
    taken: dict[str, float] = field(default_factory=dict)
    """`step`: seconds of its steps; `cpu`: CPU seconds of all processes of the run; and those of
    the processes that were named.
    """


class Switch:
    """Turns something on and off at the ends of a run's steps, and measures."""

    def __init__(
        self,
        config: RunConfig,
        turn: Callable[["Switch", bool], None],
        num_blocks: int,
        named: dict[str, tuple[str, ...]],
    ) -> None:
        """`turn` is told before every block; `named`: name -> parts of the command lines of
        processes that are measured apart.
        """
        self.run_dir = Path(config.cluster.run_dir)
        self.turn, self.num_blocks, self.named = turn, num_blocks, named
        self.process: subprocess.Popen[str] = start(config)
        self.blocks: list[Block] = []
        self.is_on = True
        self._root = psutil.Process(self.process.pid)
        thread = threading.Thread(target=self._turn, daemon=True)
        thread.start()
        output = self.process.communicate()[0]
        thread.join()
        assert self.process.returncode == 0, output
        assert len(self.blocks) == num_blocks, "the thread has told why"
        lines = (self.run_dir / "metrics.jsonl").read_text().splitlines()
        seconds = {row["step"]: row["time/step"] for row in map(json.loads, lines)}
        for block in self.blocks:
            block.taken["step"] = sum(seconds[block.first + i] for i in range(BLOCK))

    def _turn(self) -> None:
        try:
            self._wait(FIRST)
            for index in range(self.num_blocks):
                first = FIRST + 1 + BLOCK * index
                self._set(is_on=index % 4 in (0, 3))
                before = self._taken()
                self._wait(first + BLOCK - 1)
                after = self._taken()
                taken = {name: after[name] - before[name] for name in before}
                self.blocks.append(Block(first=first, is_on=self.is_on, taken=taken))
        finally:
            if not self.is_on:
                self._set(is_on=True)

    def _wait(self, step: int) -> None:
        """Until a step is told of."""
        file, size = self.run_dir / "metrics.jsonl", -1
        while True:
            assert self.process.poll() is None, "the run has ended"
            if file.exists() and file.stat().st_size != size:
                size = file.stat().st_size
                if step in read_steps(self.run_dir)[-3:]:
                    return
            time.sleep(LOOK_S)

    def _set(self, *, is_on: bool) -> None:
        self.is_on = is_on
        self.turn(self, is_on)

    def find(self, parts: tuple[str, ...]) -> list[psutil.Process]:
        """The run's processes with one of these in their command lines."""
        found = []
        for child in self._root.children(recursive=True):
            words = " ".join(child.cmdline())
            if any(part in words for part in parts):
                found.append(child)
        assert found, f"no {parts} in this run"
        return found

    def _taken(self) -> dict[str, float]:
        chosen = {name: self.find(parts) for name, parts in self.named.items()}
        chosen["cpu"] = [self._root, *self._root.children(recursive=True)]
        return {
            name: sum(t.user + t.system for t in (one.cpu_times() for one in some))
            for name, some in chosen.items()
        }

    def ratio(self, what: str) -> dict[str, float]:
        """On over off: mean, and its 95 % interval."""
        logs = []
        for one, other in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            assert one.is_on is not other.is_on
            on, off = (one, other) if one.is_on else (other, one)
            logs.append(math.log(on.taken[what] / off.taken[what]))
        mean, error = statistics.mean(logs), 2 * statistics.stdev(logs) / math.sqrt(len(logs))
        names = ("mean", "from", "to")
        edges = (mean, mean - error, mean + error)
        return {name: round(math.exp(edge), 4) for name, edge in zip(names, edges, strict=True)}

    def quiet_ratio(self) -> dict[str, float]:
        """On over off of the step times that a quarter are below: others on the machine only slow
        down. With its 95 % interval, by drawing the steps again 4,000 times.
        """
        rng = np.random.default_rng(0)
        kinds = [
            np.array([b.taken["step"] for b in self.blocks if b.is_on == on])
            for on in (True, False)
        ]
        found = np.quantile(kinds[0], 0.25) / np.quantile(kinds[1], 0.25)
        drawn = [np.quantile(rng.choice(x, (4000, len(x))), 0.25, axis=1) for x in kinds]
        low, high = np.quantile(drawn[0] / drawn[1], [0.025, 0.975])
        edges = {"mean": found, "from": low, "to": high}
        return {name: round(float(edge), 4) for name, edge in edges.items()}

    def cores(self, what: str, blocks: Sequence[Block]) -> float:
        """How many cores the processes of a name took."""
        seconds = sum(block.taken["step"] for block in blocks)
        return round(sum(block.taken[what] for block in blocks) / seconds, 5)

    def spread(self) -> float:
        """Of the seconds of blocks that are off: standard deviation over mean, without drift."""
        off = [block.taken["step"] for block in self.blocks if not block.is_on]
        pairs = zip(off[::2], off[1::2], strict=False)
        return round(statistics.stdev(math.log(a / b) for a, b in pairs) / math.sqrt(2), 4)
