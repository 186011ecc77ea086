"""`attune ablate`: all runs of a grid on one Ray, each in its own folder, and their comparison.

    for each seed:   world ─▶ SFT ─▶ reward model      once, shared by the seed's cells
                                        │
                     cell, cell, cell ◀─┘              `parallel` at a time, in threads

A run with summary.json is done, a begun one goes on from its last checkpoint, so the same command
again finishes what was broken off. A run that fails is noted and the others go on.
"""

import json
import logging
import queue
import shutil
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from cluster.ablation_results import FAILED
from cluster.demo import stage_config, write_world_and_model
from cluster.errors import root_cause
from cluster.failure import write_failure
from cluster.inputs import Inputs, check_models, prepare_run_dir, read_inputs
from cluster.progress import RunProgress, default_console
from configs.ablation import read_ablation
from configs.ablation_plan import Plan, PlannedRun, Start, make_plan
from configs.errors import ConfigError
from configs.load import load_config
from configs.redaction import redact_text
from configs.schema import OFFLINE, RunConfig

if TYPE_CHECKING:
    from cluster.house import House

logger = logging.getLogger(__name__)

STOP_S = 90.0
"""How long runs may take to stop."""


def prepare(file: Path, out: Path | None) -> Plan:
    """The checked plan of an ablation; raises `ConfigError` with one line that names the cell."""
    plan = make_plan(read_ablation(file), file, out)
    refuse_changed(plan)
    return plan


def execute(plan: Plan, *, debug: bool = False) -> bool:
    """Run what is not done yet and write the results; whether every run is done."""
    try:
        if not all(is_done(run.config) for run in plan.runs):
            _run_all(plan, debug)
    finally:
        page = _write(plan)
    failed = [run for run in plan.runs if not is_done(run.config)]
    for run in failed:
        typer.echo(f"failed: {run.cell}, seed {run.seed}: {_reason(run)}", err=True)
    if failed:
        typer.echo(f"when mended, go on with the same command; logs: {plan.out}/logs", err=True)
    typer.echo(f"results: {plan.out / 'results.md'}   page: {page}")
    return not failed


def _write(plan: Plan) -> Path:
    from cluster.ablation_report import write_results

    return write_results(plan)


def render(plan: Plan) -> str:
    """All runs with their steps, and what is done of them."""
    lines, steps, left = [], 0, 0
    jobs: list[tuple[str, str, RunConfig, int | None]] = []
    for start, runs in plan.starts:
        for stage, config, sample in _stages(plan, start):
            assert start is not None
            jobs.append((f"seed={start.seed}", stage, config, sample))
        jobs += [(f"seed={run.seed}", run.cell, run.config, None) for run in runs]
    width = max(len(name) for _, name, _, _ in jobs)
    for seed, name, config, sample in jobs:
        state = "done" if is_done(config) else "begun" if is_begun(config) else ""
        if sample is None:
            own = config.algorithm.num_steps
            steps += own
            left += 0 if state == "done" else own
            what = f"{config.algorithm.name:<14}{own:>7} steps  "
        else:
            what = f"{'':<14}{sample:>7} replies to each prompt  "
        lines.append(f"{seed:<8}  {name:<{width}}  {what}{state}".rstrip())
    at_once = f", {plan.parallel} at a time" if plan.parallel > 1 else ""
    total = f"{len(plan.runs)} runs of {len(plan.cells)} cells{at_once}, compared by {plan.judge}"
    return "\n".join([*lines, f"{total}; {steps} steps in all, {left} to go", f"into {plan.out}"])


def is_done(config: RunConfig) -> bool:
    """Whether the run has finished."""
    return Path(config.cluster.run_dir, "summary.json").exists()


def is_begun(config: RunConfig) -> bool:
    """Whether there is something to go on from."""
    return Path(config.cluster.run_dir, "config.yaml").exists()


def refuse_changed(plan: Plan) -> None:
    """Runs that are on disk must be those that the file asks for now.

    Else a table would compare cells under names that no longer say what was run.
    """
    for start, runs in plan.starts:
        wanted = [(stage, config) for stage, config, _ in _stages(plan, start)]
        wanted += [(run.cell, run.config) for run in runs]
        for name, config in wanted:
            if not is_begun(config):
                continue
            file = Path(config.cluster.run_dir, "config.yaml")
            key = _first_difference(load_config(file).model_dump(), config.model_dump())
            if key:
                raise ConfigError(
                    f"cell {name}: {file.parent} was run with another {key}; give another --out, "
                    "or remove that folder"
                )


def _first_difference(one: object, other: object, at: str = "") -> str | None:
    """Dotted name of the first setting that differs."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return None if one == other else at
    for key in dict.fromkeys([*one, *other]):
        name = f"{at}.{key}" if at else str(key)
        if found := _first_difference(one.get(key), other.get(key), name):
            return found
    return None


def _stages(plan: Plan, start: Start | None) -> list[tuple[str, RunConfig, int | None]]:
    """Name and configuration of what the cells start from, and how many replies it draws."""
    if start is None:
        return []
    made = [(stage, _stage(plan, start, stage), None) for stage in start.needs]
    return made + [(stage.name, stage.config, stage.sample) for stage in start.stages]


def _stage(plan: Plan, start: Start, stage: str) -> RunConfig:
    try:
        return stage_config(stage, plan.world_overrides, start.folder, start.seed)
    except ConfigError as error:
        lines = "; ".join(str(error).splitlines())
        raise ConfigError(f"world.overrides, {stage}: {lines}") from error


def check_inputs(plan: Plan) -> None:
    """Refuse what a cell lacks of its own model and data, before the first run starts."""
    for start, runs in plan.starts[:1]:
        for run in runs if start is None else ():
            try:
                check_models(run.config)
                read_inputs(run.config)
            except ValueError as error:
                raise ConfigError(f"cell {run.cell}: {error}") from error


# ---- on one Ray ----------------------------------------------------------------------------------


def _run_all(plan: Plan, debug: bool) -> None:
    # Here, not in the threads: two that import one lazy module at once may find it half made.
    from transformers import AutoTokenizer  # noqa: F401

    import cluster.run  # noqa: F401
    from cluster.runtime import ray_session

    with (
        ray_session(_session_config(plan), plan.parallel, root=plan.out),
        closing(_Jobs(plan, debug)) as jobs,
    ):
        for start, runs in plan.starts:
            todo = [run for run in runs if not is_done(run.config)]
            reason = jobs.begin(start) if start and todo else None
            if reason is None:
                jobs.run(todo)
                continue
            for run in todo:
                _note(run.folder, f"what seed {run.seed} starts from failed: {reason}")


def _session_config(plan: Plan) -> RunConfig:
    """The run that asks for most processors, in the ablation's folder."""
    from cluster.runtime import cpus_wanted

    configs = [run.config for run in plan.runs]
    configs += [stage.config for start, _ in plan.starts if start for stage in start.stages]
    largest = max(configs, key=cpus_wanted)
    cluster = largest.cluster.model_copy(update={"run_dir": str(plan.out)})
    return largest.model_copy(update={"cluster": cluster})


_Job = tuple[RunConfig, str, int | None]
"""What is run, its title, and how many replies it draws where it only samples."""


class _Jobs:
    """Runs of one ablation, a few at a time; each takes over processes of the one before.

    Runs wait for Ray in daemon threads, so Ctrl-C reaches the driver at once; Ray's end ends them.
    """

    def __init__(self, plan: Plan, debug: bool) -> None:
        from cluster.house import House

        self.plan = plan
        self.debug = debug
        self.total = len(plan.runs)
        self.number = sum(is_done(run.config) for run in plan.runs)
        # Bars redrawn in place cannot share a terminal: several runs print lines instead.
        several = plan.parallel > 1
        self.console = Console(stderr=True, force_terminal=False) if several else default_console()
        self.houses = [House() for _ in range(plan.parallel)]

    def close(self) -> None:
        """End the processes that runs left to each other."""
        for house in self.houses:
            house.close()

    def begin(self, start: Start) -> str | None:
        """Make what the seed's runs start from, unless it is there; the reason where that fails."""
        world = start.folder / "world"
        if not world.exists():
            # Whole or not there: the folder gets its name when everything is in it.
            partial = world.with_name(".world")
            shutil.rmtree(partial, ignore_errors=True)
            write_world_and_model(partial, start.seed)
            partial.rename(world)
        for name, config, sample in _stages(self.plan, start):
            if not is_done(config):
                reasons = self._threads([(config, f"{name} of seed {start.seed}", sample)], 1)
                if reasons:
                    return reasons[0]
        return None

    def run(self, runs: Sequence[PlannedRun]) -> None:
        """Run them all."""
        named = []
        for run in runs:
            self.number += 1
            title = f"{self.number}/{self.total} {run.cell} seed={run.seed}"
            named.append((run.config, title, None))
        self._threads(named, self.plan.parallel)

    def _threads(self, jobs: Sequence[_Job], at_once: int) -> list[str]:
        """Why jobs failed, one line each."""
        waiting: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        for job in jobs:
            waiting.put(job)
        reasons: list[str] = []
        stopping = threading.Event()
        # Not asked of threads: one whose `join` Ctrl-C interrupts says that it has ended (3.11).
        ended = threading.Semaphore(0)

        def work(house: "House") -> None:
            try:
                attempt_all(house)
            finally:
                ended.release()

        def attempt_all(house: "House") -> None:
            while not stopping.is_set():
                try:
                    config, title, sample = waiting.get_nowait()
                    reason = _attempt(config, title, sample, house, self.console, self.debug)
                except (queue.Empty, KeyboardInterrupt):
                    return
                if reason is not None and not stopping.is_set():
                    _note(Path(config.cluster.run_dir), reason)
                    self.console.print(f"{title}  failed: {reason}", markup=False, soft_wrap=True)
                    reasons.append(reason)

        threads = [
            threading.Thread(target=work, args=[house], daemon=True)
            for house in self.houses[:at_once]
        ]
        for thread in threads:
            thread.start()
        left = len(threads)
        try:
            while left:
                left -= ended.acquire(timeout=0.2)
        except BaseException:
            stopping.set()
            for house in self.houses:
                house.stop()
            for _ in range(left):
                ended.acquire(timeout=STOP_S)
            raise
        return reasons


def _attempt(
    config: RunConfig,
    title: str,
    sample: int | None,
    house: "House",
    console: Console,
    debug: bool,
) -> str | None:
    """Run to the end; one line on what ended it where that was too early."""
    from cluster.run import run

    folder = Path(config.cluster.run_dir)
    (folder / FAILED).unlink(missing_ok=True)
    try:
        prepare_run_dir(config, resume=is_begun(config))
        if sample is not None or config.algorithm.name in OFFLINE:
            house.close()  # nothing of it is of use there, and it holds processors
        if sample is not None:
            _draw(config, title, sample, console)
            return None
        inputs = _inputs(config, house)
        steps = config.algorithm.num_steps
        with RunProgress(steps, title, console, run_dir=folder) as progress:
            run(config, inputs, progress, house)
    except Exception as error:  # noted; the other runs go on
        level = logging.WARNING if debug else logging.INFO  # on the console, or in driver.log alone
        logger.log(level, "%s failed", title, exc_info=True)
        write_failure(folder, error)
        return " ".join(root_cause(error).split())
    return None


def _inputs(config: RunConfig, house: "House") -> Inputs:
    """Checked against the memory that is free, to which the run before may still add its own."""
    try:
        return read_inputs(config)
    except ConfigError:
        house.close()
        return read_inputs(config)


def _draw(config: RunConfig, title: str, count: int, console: Console) -> None:
    """The replies of a stage that samples; nothing of an attempt that broke off is kept."""
    from cluster import samples

    folder = Path(config.cluster.run_dir)
    out = folder / "replies.parquet"
    out.unlink(missing_ok=True)
    wanted = samples.prepare(config, Path(config.model.path), out, count, None)
    with RunProgress(len(wanted.prompts), title, console) as progress:
        scores = samples.draw(wanted, progress)
    best = {str(n): one.mean for n, one in samples.best_of(scores).items()}
    (folder / "summary.json").write_text(json.dumps({"best_of": best}))


def _note(folder: Path, reason: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILED).write_text(redact_text(reason) + "\n")


def _reason(run: PlannedRun) -> str:
    failed = run.folder / FAILED
    return failed.read_text().strip() if failed.exists() else "it has not finished"
