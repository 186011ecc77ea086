"""Real Ray, real vLLM and DeepSpeed, small; one Ray cluster for the tests of a session."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def world_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained policy of the built-in world: tied Qwen3, with tokenizer."""
    from rl.world.model import write_model

    folder = tmp_path_factory.mktemp("world") / "model"
    write_model(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def world_prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred prompts as JSON lines."""
    from rl.world.replies import draw_request, write_prompt

    rng = random.Random(0)
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = []
    for _ in range(200):
        place, question = draw_request(rng)
        rows.append({"prompt": write_prompt(rng, place, question), "place": place})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray cluster of this session's own."""
    import ray

    from cluster.runtime import runtime_env

    ray.init(
        num_cpus=16,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env=runtime_env(),
        namespace="attune-tests",
    )
    yield
    ray.shutdown()
