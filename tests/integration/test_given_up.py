"""A run that ends early leaves no rank, and no thread that waits in Ray when Ray is shut down."""

import threading
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


@pytest.mark.parametrize("reason", [GivenUp("no engine starts"), KeyboardInterrupt()])
def test_neither_ranks_nor_threads_are_left_of_a_run_that_ends_early(
    reason: BaseException, world_model: Path, world_pairs: Path, tmp_path: Path
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
        ranks.extend(
            psutil.Process(pid) for event in events(config, "learner_started")
            for pid in event["pids"]
        )  # fmt: skip
        return reason if ranks else None

    with pytest.raises(type(reason)), RunProgress(100000, "sft") as progress:
        fit(config, trainer(config, offline, job), progress, failure)
    assert ranks
    assert "ray-train" not in [thread.name for thread in threading.enumerate()]
    assert gone(ranks, within_s=30), "a rank was left behind"
