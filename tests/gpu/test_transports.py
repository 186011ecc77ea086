"""Weight sync on GPUs through vLLM's own NCCL and CUDA IPC engines."""

from pathlib import Path

import pytest
import ray
import torch

from tests.integration.conftest import *  # noqa: F403 - the same fixtures
from tests.integration.loop import start_loop, stop, tiny_run

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(600)]

PROBES = [[7, 8, 9, 10, 11], [20, 21, 22]]


@pytest.mark.parametrize(
    ("transport", "gpus_each", "gpus_needed"), [("nccl", 1.0, 2), ("ipc", 0.5, 1)]
)
def test_an_engine_on_a_gpu_takes_over_weights(
    world_model: Path,
    world_prompts: Path,
    tmp_path: Path,
    transport: str,
    gpus_each: float,
    gpus_needed: int,
) -> None:
    if torch.cuda.device_count() < gpus_needed:
        pytest.skip(f"{transport} between learner and engine needs {gpus_needed} GPUs")
    config = tiny_run(
        world_model,
        world_prompts,
        tmp_path / "run",
        "cluster.device=cuda",
        f"cluster.sync.transport={transport}",
        f"cluster.learner.gpus_per_worker={gpus_each}",
        f"cluster.rollout.gpus_per_engine={gpus_each}",
    )
    learner, engines = start_loop(config, PROBES)
    for version in range(1, 6):
        ray.get(learner.jitter.remote(0.01, version))
        metrics = ray.get(learner.publish.remote(version), timeout=120)
        assert metrics["probe/gap"] <= 1e-3
    stop(learner, engines)
