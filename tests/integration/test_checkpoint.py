"""What a learner leaves behind: checkpoints for any world size, and Hugging Face folders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from actors.frozen import FrozenModel
from actors.reward import ModelReward
from actors.specs import FrozenSpec
from configs.schema import RunConfig
from rl.data.encode import encode_for_reward
from tests.integration import learning, toy
from tests.integration.processes import Ranks

STEPS = 3
RESUME_TOLERANCE = 1e-5


def step_rows(folder: Path) -> list[list[Any]]:
    """Other groups for every step."""
    return [toy.experiences(folder, (2, 3, 2, 2), seed=seed) for seed in range(STEPS)]


def shared(steps: list[list[Any]], num_workers: int) -> list[list[list[Any]]]:
    """Every step's rows, dealt out to the ranks."""
    return [[rows[rank::num_workers] for rank in range(num_workers)] for rows in steps]


def ppo(folder: Path, judge: Path, num_workers: int) -> RunConfig:
    """Everything that has a state: critic, KL controller, running moments, a schedule."""
    settings = {
        "model": {"critic": str(judge)},
        "feedback": {"normalise": True},
        "algorithm": {
            "num_epochs": 1,
            "num_minibatches": 1,
            "kl": {"target": 0.01, "horizon": 50},
            "optimizer": {"schedule": "linear", "warmup_steps": 2, "max_grad_norm": 1.0},
        },
    }
    return toy.run_config("ppo", folder, settings, num_workers=num_workers)


def differences(left: list[dict], right: list[dict]) -> dict[str, float]:
    """Largest difference in metrics (relative above 1), log-probs and values."""
    metrics, expected = left[0]["metrics"], right[0]["metrics"]
    assert metrics.keys() == expected.keys()
    gaps = {
        "metrics": max(
            abs(metrics[name] - expected[name]) / max(1, abs(expected[name])) for name in expected
        )
    }
    for name in ("logprobs", "values"):
        own, other = (by_sample(parts, name) for parts in (left, right))
        assert own.keys() == other.keys()
        gaps[name] = max(float(np.abs(own[key] - other[key]).max()) for key in own)
    return gaps


def by_sample(parts: list[dict], name: str) -> dict[bytes, np.ndarray]:
    """Answers of all ranks by their sequences' place in the step."""
    return {
        key: row
        for part in parts
        for key, row in zip(part["keys"], part["answers"][name], strict=True)
    }


@pytest.mark.parametrize(("saved_at", "loaded_at"), [(2, 2), (2, 1), (1, 2)])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(
    saved_at, loaded_at, model_folder, judge_folder, one_rank, two_ranks, tmp_path
):
    folder = model_folder("qwen3", tied=True)
    steps = step_rows(folder)
    groups = {1: one_rank, 2: two_ranks}

    def run(num_workers: int, task: Any, *args: Any) -> list[dict]:
        config = ppo(folder, judge_folder, num_workers)
        return groups[num_workers].run(task, config, shared(steps, num_workers), *args)

    whole = run(saved_at, learning.interrupted, tmp_path / "saved")
    resumed = run(loaded_at, learning.resumed, tmp_path / "saved", tmp_path / "work")

    state = whole[0]["state"]
    assert state["version"] == STEPS - 1
    assert state["kl_coef"] != ppo(folder, judge_folder, 1).algorithm.kl.coef
    assert state["scores"]["count"] == 2 * 9
    assert [part["state"] for part in resumed] == [state] * loaded_at
    for name, gap in differences(resumed, whole).items():
        print(f"MEASURED saved at {saved_at} loaded at {loaded_at} {name}: {gap:.1e}")
        assert gap <= RESUME_TOLERANCE, name
