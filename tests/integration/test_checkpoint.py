"""What a learner leaves behind: checkpoints for any world size, and Hugging Face folders."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from actors.frozen import FrozenModel
from actors.judges.models import ModelReward
from actors.specs import FrozenSpec
from configs.schema import RunConfig
from rl.data.encode import encode_for_reward
from tests.integration import learning, toy

STEPS = 3
RESUME_TOLERANCE = 1e-5


def step_rows(folder: Path) -> list[list[Any]]:
    """Other groups for every step."""
    return [toy.experiences(folder, (2, 3, 2, 2), seed=seed) for seed in range(STEPS)]


def shared(steps: list[list[Any]], num_workers: int) -> list[list[list[Any]]]:
    """Every step's rows, dealt out to the ranks."""
    return [[rows[rank::num_workers] for rank in range(num_workers)] for rows in steps]


def ppo(folder: Path, judge: Path, num_workers: int) -> RunConfig:
    """All that has a state: critic, KL controller, running moments, schedule, groups of weights."""
    settings = {
        "model": {"critic": str(judge)},
        "feedback": {"normalise": True},
        "algorithm": {
            "num_epochs": 1,
            "num_minibatches": 1,
            "kl": {"target": 0.01, "horizon": 50},
            "optimizer": {"schedule": "linear", "warmup_steps": 2, "weight_decay": 0.1},
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


@pytest.mark.slow
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

    whole = run(saved_at, learning.interrupted, tmp_path / "parts")
    for part in (tmp_path / "parts").iterdir():
        shutil.copytree(part, tmp_path / "saved", dirs_exist_ok=True)
    resumed = run(loaded_at, learning.resumed, tmp_path / "saved", tmp_path / "work")

    state = whole[0]["state"]
    assert state["version"] == STEPS - 1
    assert state["kl_coef"] != ppo(folder, judge_folder, 1).algorithm.kl.coef
    assert state["scores"]["count"] == 2 * 9
    assert [part["state"] for part in resumed] == [state] * loaded_at
    for name, gap in differences(resumed, whole).items():
        print(f"MEASURED saved at {saved_at} loaded at {loaded_at} {name}: {gap:.1e}")
        assert gap <= RESUME_TOLERANCE, name


@pytest.mark.parametrize("is_tied", [True, False])
def test_an_exported_policy_is_the_learners_in_plain_transformers(
    is_tied, model_folder, two_ranks, tmp_path
):
    folder = model_folder("qwen3", tied=is_tied)
    rows = toy.experiences(folder, (2, 3, 2))
    config = toy.run_config("rloo", folder, num_workers=2)
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "old").touch()
    args = ([rows[:2], rows[2:]], tmp_path / "policy")
    found = two_ranks.run(learning.exported, config, *args)

    names = tensor_names(tmp_path / "policy")
    assert ("lm_head.weight" in names) is not is_tied
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy"]
    assert not (tmp_path / "policy" / "old").exists()
    assert len(names) == len(set(names))
    before = policy_gap(folder, rows, found)
    after = policy_gap(tmp_path / "policy", rows, found)
    print(f"MEASURED export tied={is_tied}: {after:.1e} (untrained {before:.1e})")
    assert after <= 1e-5 < 1e-2 < before


def tensor_names(folder: Path) -> list[str]:
    """Names of all tensors in a folder's safetensors files."""
    names = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            names += list(tensors.keys())
    return names


def policy_gap(folder: Path, rows: list, found: list[dict]) -> float:
    """Largest difference between the folder's log-probs and the learner's own."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    model, loading = loaded
    assert not any(loading.values()), loading
    probes = [row for part in found for row in part["probes"]]
    rollouts = [rollout for row in rows for rollout in row.rollouts]
    with torch.no_grad():
        own = [toy.token_logprobs(model, [*r.prompt.tokens, *r.tokens]) for r in rollouts]
    return max(float(np.abs(a.numpy() - b).max()) for a, b in zip(own, probes, strict=True))


def test_a_large_export_is_cut_into_indexed_shards(model_folder, one_rank, tmp_path):
    folder = model_folder("llama")
    rows = toy.experiences(folder, (2, 2))
    config = toy.run_config("rloo", folder, {"model": {"dtype": "bfloat16"}})
    policy = tmp_path / "policy"
    found = one_rank.run(learning.exported, config, [rows], policy, 1)

    shards = sorted(path.name for path in policy.glob("*.safetensors"))
    # The embedding, two layers, the final norm and the head.
    assert shards == [f"model-{number:05d}-of-00005.safetensors" for number in range(1, 6)]
    index = json.loads((policy / "model.safetensors.index.json").read_text())["weight_map"]
    assert sorted(index) == sorted(tensor_names(policy))
    assert set(index.values()) == set(shards)
    assert json.loads((policy / "config.json").read_text())["dtype"] == "bfloat16"
    assert policy_gap(policy, rows, found) <= 0.1  # as far as bfloat16 is from float32


def test_an_export_that_breaks_off_leaves_the_last_whole_one(model_folder, one_rank, tmp_path):
    folder = model_folder("llama")
    config = toy.run_config("rloo", folder)
    first = one_rank.run(learning.export_to_a_full_disk, config, tmp_path / "policy")[0]
    assert "No space left" in first
    assert not (tmp_path / "policy").exists()

    rows = toy.experiences(folder, (2, 2))
    found = one_rank.run(learning.exported, config, [rows], tmp_path / "policy")
    again = one_rank.run(learning.export_to_a_full_disk, config, tmp_path / "policy")[0]
    assert "No space left" in again
    assert policy_gap(tmp_path / "policy", rows, found) <= 1e-5


def test_an_exported_reward_model_scores_like_the_learner_less_its_bias(
    model_folder, two_ranks, tmp_path
):
    folder = model_folder("qwen3", tied=True)
    rows = toy.pairs(6)
    config = toy.run_config("reward_model", folder, num_workers=2)
    judge = tmp_path / "judge"
    args = ([rows[:2], rows[2:]], judge, None, 1.25)
    parts = two_ranks.run(learning.exported, config, *args)
    scores = np.array([score for part in parts for score in part["scores"]])

    model = AutoModelForSequenceClassification.from_pretrained(judge, dtype=torch.float32).eval()
    assert model.config.reward_bias == 1.25
    for row, (chosen, rejected) in zip(rows, scores, strict=True):
        for tokens, score in ((row.chosen_tokens, chosen), (row.rejected_tokens, rejected)):
            with torch.no_grad():
                assert float(model(torch.tensor([tokens])).logits) == pytest.approx(score, abs=1e-5)

    toy.tokenizer().save_pretrained(str(judge))
    spec = FrozenSpec(kind="value", path=str(judge), dtype="float32", device="cpu", max_tokens=64)
    rollouts = [rollout for group in toy.experiences(folder, (3, 2)) for rollout in group.rollouts]
    judged = ModelReward("rm", spec).score(rollouts)["rm"]
    conversations = encode_for_reward(
        [rollout.prompt for rollout in rollouts],
        [rollout.text for rollout in rollouts],
        toy.tokenizer(),
    )
    with torch.no_grad():
        plain = [float(model(torch.tensor([tokens])).logits) for tokens in conversations]
    assert judged == pytest.approx([score - 1.25 for score in plain], abs=1e-5)
    assert np.std(judged) > 0.01


def test_a_policy_without_a_value_head_is_no_reward_model(model_folder):
    path = str(model_folder("qwen3", tied=True))
    spec = FrozenSpec(kind="value", path=path, dtype="float32", device="cpu", max_tokens=64)
    with pytest.raises(ValueError, match=r"no value head in the weights: not a reward model"):
        FrozenModel(spec)
