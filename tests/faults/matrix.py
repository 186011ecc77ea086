"""The kill matrix: every role, killed in every phase of a run, and whether the books are right.

    python -m tests.faults.matrix [--victims engine,rank] [--rows FILE] [--out docs/reliability.md]

One run per victim: it is killed once in each phase while the run goes on; then the run is ended by
Ctrl-C, resumed to a last step a little further on, and its books are checked. Rows are appended to
a file as they come, so that a table can be made of several calls.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cluster.events import read_events
from configs.schema import RunConfig
from tests.faults import injection
from tests.faults.accounting import Books, books
from tests.faults.nodes import SETTINGS, Nodes
from tests.integration.loop import tiny_run
from tests.integration.processes import family, gone, living, read_steps
from tests.integration.test_run import start

MARKS = ("<!-- matrix -->", "<!-- /matrix -->")
STEP = 5
"""Steps between two checkpoints, and so the most that a learner's death costs."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One victim in one phase."""

    victim: str
    phase: str
    detected_s: float
    recovered_s: float
    steps_again: int
    """Steps after the checkpoint that were run again."""
    is_right: bool = False
    """Whether the books of the whole run were right in the end."""


@dataclass(kw_only=True)
class Run:
    """A run under way, and how to find what is to be killed in it."""

    config: RunConfig
    process: subprocess.Popen[str]
    nodes: Nodes | None = None
    num_nodes: int = 1
    struck: int = 0
    """Kills so far; the engines take turns."""
    begun: float = 0.0
    """When the present driver was started, in unix seconds."""

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.config.cluster.run_dir)

    def pids(self, *roles: str) -> list[int]:
        """Of the processes that have these roles now."""
        return [injection.pid_of(self.folder, role) for role in roles]

    def first(self, kind: str, since: float, **facts: object) -> float:
        """Seconds from `since` to the first event of a kind."""
        event = injection.wait_for_event(self.folder, kind, self.process, since, **facts)
        return float(event["time"]) - since  # pyright: ignore[reportArgumentType]

    def engines(self, since: float) -> list[str]:
        """Those that lived at `since`."""
        live: set[str] = set()
        for event in read_events(self.folder):
            if event["time"] < self.begun:
                continue
            if event["time"] < since and event["kind"] in ("engine_joined", "engine_replaced"):
                live.add(event["engine"])
            elif event["time"] < since and event["kind"] == "engine_lost":
                live.discard(event["engine"])
        return sorted(live)

    def wait_until_whole(self) -> None:
        """Until both engines work."""
        injection.until("two engines", lambda: len(self.engines(time.time())) == 2, self.process)

    def next_step(self, since: float) -> float:
        """Seconds from `since` to the end of a step that begins now or later."""
        before = read_steps(self.folder)  # none where it began anew without a checkpoint

        def moved() -> bool:
            steps = read_steps(self.folder)
            return len(steps) != len(before) or steps[-1:] != before[-1:]

        injection.until("another step", moved, self.process)
        return time.time() - since


def _engine_name(run: Run) -> str:
    return f"engine-{run.struck % 2}"


def _kill_engine(run: Run) -> tuple[float, float]:
    return _strike_engine(run, lambda name: injection.kill_process(run.pids(name)[0]))


def _kill_core(run: Run) -> tuple[float, float]:
    return _strike_engine(
        run, lambda name: injection.kill_process(injection.core_of(run.folder, name))
    )


def _stop_core(run: Run) -> tuple[float, float]:
    return _strike_engine(
        run, lambda name: injection.stop_process(injection.core_of(run.folder, name))
    )


def _strike_engine(run: Run, strike: Callable[[str], None]) -> tuple[float, float]:
    name, since = _engine_name(run), time.time()
    strike(name)
    detected = run.first("engine_lost", since)
    recovered = run.first("engine_replaced", since)
    return detected, recovered


def _kill_judge(run: Run) -> tuple[float, float]:
    return _strike_scorer(run, "reward-judge-0")


def _kill_reference(run: Run) -> tuple[float, float]:
    return _strike_scorer(run, "reference-0")


def _strike_scorer(run: Run, role: str) -> tuple[float, float]:
    (pid,), since = run.pids(role), time.time()
    injection.kill_process(pid)
    return run.first("judge_replaced", since), run.next_step(since)


def _kill_collector(run: Run) -> tuple[float, float]:
    (pid,), since = run.pids("collector"), time.time()
    injection.kill_process(pid)
    return run.first("collector_replaced", since), run.next_step(since)


def _kill_rank(run: Run) -> tuple[float, float]:
    return _strike_learner(run, "learner-1")


def _kill_ranks(run: Run) -> tuple[float, float]:
    return _strike_learner(run, "learner-0", "learner-1")


def _strike_learner(run: Run, *roles: str) -> tuple[float, float]:
    pids, since = run.pids(*roles), time.time()
    for pid in pids:
        injection.kill_process(pid)
    detected = run.first("learner_failure", since)
    run.first("learner_started", since)
    return detected, run.next_step(since)


def _kill_driver(run: Run) -> tuple[float, float]:
    """Noticed: whoever goes on with the run has ended what was left of it."""
    processes, since = family(run.process.pid), time.time()
    injection.kill_process(run.process.pid)
    run.process.wait()
    run.begun = time.time()
    run.process = start(run.config, "--resume")
    assert gone(processes, within_s=60), f"outlived their driver: {living(processes)}"
    detected = time.time() - since
    run.first("learner_started", since)
    return detected, run.next_step(since)


def _kill_node(run: Run) -> tuple[float, float]:
    """The node of all engines; another one comes, as an autoscaler would have it."""
    assert run.nodes is not None
    run.wait_until_whole()
    since = time.time()
    run.nodes.kill(f"rollout-{run.num_nodes}")
    run.num_nodes += 1
    detected = run.first("engine_lost", since)
    run.nodes.add(f"rollout-{run.num_nodes}", cpus=2, role="rollout")
    return detected, max(
        run.first("engine_replaced", since, replaces=key) for key in run.engines(since)
    )


VICTIMS: dict[str, tuple[str, Callable[[Run], tuple[float, float]]]] = {
    "core": ("rollout engine process", _kill_core),
    "engine": ("rollout actor", _kill_engine),
    "stuck": ("engine stuck (SIGSTOP)", _stop_core),
    "reward": ("reward actor", _kill_judge),
    "reference": ("reference actor", _kill_reference),
    "rank": ("one learner rank of two", _kill_rank),
    "ranks": ("all learner ranks", _kill_ranks),
    "collector": ("collector", _kill_collector),
    "driver": ("driver", _kill_driver),
    "node": ("the node of all engines", _kill_node),
}


def run_config(folder: Path, victim: str) -> RunConfig:
    """A tiny run on the built-in world that does not end by itself."""
    from rl.world.generate import Sizes, write_world
    from rl.world.model import write_model

    tiny = Sizes(**(dict.fromkeys(Sizes.__dataclass_fields__, 8) | {"prompts": 200}))
    prompts = write_world(folder / "world", 0, tiny)["prompts"]
    write_model(folder / "model", seed=0)
    ranks = 2 if victim in ("rank", "ranks") else 1
    return tiny_run(
        folder / "model", prompts, folder / "run",
        "algorithm.num_steps=1000000", "algorithm.max_staleness=1",
        "cluster.rollout.num_engines=2", f"cluster.checkpoint.interval={STEP}",
        f"cluster.learner.num_workers={ranks}", "cluster.learner.max_failures=20",
    )  # fmt: skip


def strike_all(victim: str, folder: Path, phases: list[str]) -> tuple[list[Cell], Books]:
    """One run in which the victim is killed in each phase, to its last step."""
    config = run_config(folder, victim)
    if victim != "node":
        return _struck(Run(config=config, process=start(config)), victim, phases)
    os.environ.update(SETTINGS)
    with Nodes(folder / "ray", head_cpus=4) as nodes:
        nodes.add("rollout-1", cpus=2, role="rollout")
        placed = config.cluster.rollout.model_copy(update={"labels": {"role": "rollout"}})
        cluster = config.cluster.model_copy(update={"address": nodes.address, "rollout": placed})
        config = config.model_copy(update={"cluster": cluster})
        return _struck(Run(config=config, process=start(config), nodes=nodes), victim, phases)


def _struck(run: Run, victim: str, phases: list[str]) -> tuple[list[Cell], Books]:
    cells = []
    try:
        injection.wait_for_steps(run.folder, STEP + 1, run.process)
        for phase in phases:
            injection.wait_for_phase(run.folder, phase, run.process)
            since = time.time()
            detected, recovered = VICTIMS[victim][1](run)
            run.struck += 1
            cell = Cell(
                victim=victim, phase=phase, detected_s=round(detected, 1),
                recovered_s=round(recovered, 1), steps_again=_discarded(run.folder, since),
            )  # fmt: skip
            print(json.dumps(asdict(cell)), flush=True)
            cells.append(cell)
            injection.wait_for_steps(run.folder, read_steps(run.folder)[-1] + 2, run.process)
        return cells, end_and_count(run)
    finally:
        if run.process.poll() is None:
            run.process.kill()


def _discarded(folder: Path, since: float) -> int:
    """Steps that were put aside since then; of one that was run often the last is kept."""
    files = (folder / "discarded" / "ledger").glob("*")
    return sum(file.stat().st_ctime >= since for file in files)


def end_and_count(run: Run) -> Books:
    """Stop the run, go on to a last step a little further, and count."""
    processes = family(run.process.pid)
    run.process.send_signal(signal.SIGINT)
    run.process.communicate(timeout=180)
    assert gone(processes, within_s=120), "processes outlived their driver"
    last = read_steps(run.folder)[-1] + STEP
    algorithm = run.config.algorithm.model_copy(update={"num_steps": last})
    config = run.config.model_copy(update={"algorithm": algorithm})
    process = start(config, "--resume")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return books(config)


# ---- the table -----------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per victim, a column per phase."""
    newest = {(row["victim"], row["phase"]): row for row in rows}
    lines = [
        "| killed | " + " | ".join(injection.PHASES) + " |",
        "|---" * (1 + len(injection.PHASES)) + "|",
    ]
    for victim, (name, _) in VICTIMS.items():
        cells = [newest.get((victim, phase)) for phase in injection.PHASES]
        if any(cells):
            lines.append(f"| {name} | " + " | ".join(_shown(cell) for cell in cells) + " |")
    days = sorted({row["date"] for row in rows})
    right = sum(row["is_right"] for row in newest.values())
    total = len(VICTIMS) * len(injection.PHASES)
    lines += [
        "",
        f"{len(newest)} of {total} cells, {right} with right books; measured on {', '.join(days)}, "
        f"{os.cpu_count()} CPU cores, by `python -m tests.faults.matrix`.",
    ]
    return "\n".join(lines)


def _shown(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "–"
    again = f", {cell['steps_again']} again" if cell["steps_again"] else ""
    sign = "✓" if cell["is_right"] else "✗"
    return f"{cell['detected_s']} / {cell['recovered_s']} s{again} {sign}"


def main() -> int:
    """Strike, count, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.matrix")
    parser.add_argument("--victims", default=",".join(VICTIMS))
    parser.add_argument("--phases", default=",".join(injection.PHASES))
    parser.add_argument("--rows", type=Path, default=Path("matrix.jsonl"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    is_right = True
    for victim in filter(None, options.victims.split(",")):
        with TemporaryDirectory(prefix="matrix-") as folder:
            cells, counted = strike_all(victim, Path(folder), options.phases.split(","))
        print(f"{victim}: {counted}", flush=True)
        is_right &= counted.are_right
        with options.rows.open("a") as file:
            for cell in cells:
                row = asdict(cell) | {"is_right": counted.are_right, "date": str(date.today())}
                file.write(json.dumps(row) + "\n")
    if options.out is not None:
        rows = [json.loads(line) for line in options.rows.read_text().splitlines()]
        before, _, rest = options.out.read_text().partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        made = f"{before}{MARKS[0]}\n{table(rows)}\n{MARKS[1]}{after}"
        options.out.write_text(made)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
