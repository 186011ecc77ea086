"""A run that ends early leaves no rank, and no thread that waits in Ray when Ray is shut down."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from cluster.inputs import prepare_run_dir, read_inputs
from cluster.jobs import OfflineJob, offline
from cluster.progress import RunProgress
from cluster.training import fit, trainer
from tests.integration.processes import gone
from tests.integration.test_learner_restarts import events, sft_run, world_pairs

__all__ = ["world_pairs"]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(400)]


class GivenUp(RuntimeError):
    """What the supervisor would have found."""


def give_up() -> BaseException:
    return GivenUp("no engine starts")


def press_ctrl_c() -> None:
    """In a moment, when the main thread waits."""
    threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()


@pytest.mark.parametrize(
    ("strike", "error"), [(give_up, GivenUp), (press_ctrl_c, KeyboardInterrupt)]
)
def test_neither_ranks_nor_threads_are_left_of_a_run_that_ends_early(
    strike: Callable[[], BaseException | None],
    error: type[BaseException],
    world_model: Path,
    world_pairs: Path,
    tmp_path: Path,
) -> None:
    config = sft_run(world_model, world_pairs, tmp_path / "run", "algorithm.num_steps=100000")
    inputs = read_inputs(config)
    prepare_run_dir(config, resume=False)
    job = OfflineJob(
        config=config, pad_token_id=inputs.pad_token_id, train=inputs.train,
        validation=inputs.validation,
    )  # fmt: skip
    ranks: list[psutil.Process] = []

    def failure() -> BaseException | None:
        started = events(config, "learner_started")
        if ranks or not started:
            return None
        ranks.extend(psutil.Process(pid) for event in started for pid in event["pids"])
        return strike()

    with pytest.raises(error), RunProgress(100000, "sft") as progress:
        fit(config, trainer(config, offline, job), progress, failure)
    waiting = [
        frame for frame in sys._current_frames().values() if frame.f_code.co_name == "get_objects"
    ]
    assert not waiting, "a thread is left in ray.get, where shutting down ends the process"
    assert ranks
    assert gone(ranks, within_s=30), "a rank was left behind"
