"""A trace of some learner steps, for chrome://tracing or Perfetto."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule

from cluster.events import record
from configs.schema import RunConfig

logger = logging.getLogger(__name__)

FOLDER = "profile"
"""In the run folder."""


def profiled(config: RunConfig, rank: int, steps: range) -> Iterator[int]:
    """The steps, while those that `cluster.learner.profile` names are traced.

    >>> for step in profiled(config, rank, range(1, 11)):  # doctest: +SKIP
    ...     with record_function("update"):  # a range in the trace
    ...         learn(step)

    A learner that goes on traces what is left of them. A trace that cannot be written is told of in
    events.jsonl, and the run goes on.
    """
    wanted = _wanted(config, steps)
    if not wanted:
        yield from steps
        return
    warmup = min(1, wanted.start - steps.start)
    profiler = profile(
        activities=_activities(config),
        schedule=schedule(
            wait=wanted.start - steps.start - warmup, warmup=warmup, active=len(wanted), repeat=1
        ),
        on_trace_ready=lambda ready: _write(ready, config, rank, wanted),
    )
    profiler.start()
    try:
        for step in range(steps.start, wanted.stop):
            yield step
            profiler.step()  # after the last of them the trace is written
    finally:
        profiler.on_trace_ready = None  # what ends a learner early is not held up
        profiler.stop()
    del profiler  # and the memory that it holds
    yield from range(wanted.stop, steps.stop)


def _wanted(config: RunConfig, steps: range) -> range:
    """Steps to trace, of those that are still to be taken."""
    settings = config.cluster.learner.profile
    if settings is None:
        return range(0)
    first = max(settings.first_step, steps.start)
    return range(first, min(settings.first_step + settings.num_steps, steps.stop))


def _activities(config: RunConfig) -> list[ProfilerActivity]:
    on_device = [ProfilerActivity.CUDA] if config.cluster.device == "cuda" else []
    return [ProfilerActivity.CPU, *on_device]


def _write(ready: profile, config: RunConfig, rank: int, steps: range) -> None:
    path = Path(config.cluster.run_dir) / FOLDER / f"rank={rank}.json.gz"
    partial = path.with_name(f".{path.name}")  # torch packs what ends so
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ready.export_chrome_trace(str(partial))
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        logger.warning("the profile of learner-%d was not written: %s", rank, error)
        record(config.cluster.run_dir, "profile_failed", rank=rank, reason=str(error)[:300])
        return
    facts = {"rank": rank, "first_step": steps.start, "last_step": steps.stop - 1}
    size = path.stat().st_size
    record(config.cluster.run_dir, "profile_written", **facts, bytes=size)
