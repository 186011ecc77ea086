"""The learner's numbers: the same however a step is split, and those of plain transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.integration import learning, toy

GROUPS = (3, 2, 4, 2, 3, 2)
ONE_MICRO_BATCH, SMALL = 8192, 64
"""Tokens of a micro-batch that holds everything, and of one that holds two or three rows."""
SPLIT_TOLERANCE = 1e-5


def gradient_gap(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> float:
    """Largest relative difference |a - b| / |b| over tensors, in the Euclidean norm."""
    assert left.keys() == right.keys()
    norm = np.linalg.norm
    assert all(norm(gradient) > 0 for gradient in right.values())
    return max(float(norm(left[name] - right[name]) / norm(right[name])) for name in right)


def metric_gap(left: dict[str, float], right: dict[str, float]) -> float:
    """Largest difference of two steps' metrics, relative to those above 1 in size."""
    assert left.keys() == right.keys()
    return max(abs(left[name] - right[name]) / max(1, abs(right[name])) for name in right)


def one_step_settings(method: str, judge: Path, budget: int) -> dict:
    """One optimizer step, so that its gradients say everything about the learner step."""
    if method != "ppo":
        return {"algorithm": {"tokens_per_micro_batch": budget}}
    return {
        "model": {"critic": str(judge)},
        "algorithm": {"tokens_per_micro_batch": budget, "num_epochs": 1, "num_minibatches": 1},
    }


@pytest.mark.parametrize("method", ["rloo", "ppo", "sft", "reward_model"])
def test_gradients_and_metrics_do_not_depend_on_how_a_step_is_split(
    method, model_folder, judge_folder, one_rank, two_ranks
):
    folder = model_folder("qwen3", tied=True)
    if method in ("rloo", "ppo"):
        rows = toy.experiences(folder, GROUPS)
    else:
        rows = toy.demonstrations(16) if method == "sft" else toy.pairs(12)

    def step(ranks, budget, shares, *padding):
        settings = one_step_settings(method, judge_folder, budget)
        config = toy.run_config(method, folder, settings, num_workers=len(shares))
        return ranks.run(learning.first_step, config, shares, *padding)[0]

    whole = step(one_rank, ONE_MICRO_BATCH, [rows])
    splits = {
        "micro-batches": step(one_rank, SMALL, [rows]),
        "other padding": step(one_rank, 4 * SMALL, [rows], 77, 64),
        "two ranks": step(two_ranks, ONE_MICRO_BATCH, [rows[::2], rows[1::2]]),
        "two ranks, one of them mostly idle": step(two_ranks, SMALL, [rows[:1], rows[1:]]),
    }

    assert set(whole["num_micro_batches"].values()) == {1}
    assert min(splits["micro-batches"]["num_micro_batches"].values()) >= 4
    assert splits["two ranks"]["is_partitioned"]
    for name, split in splits.items():
        for role, gradients in whole["gradients"].items():
            gap = gradient_gap(split["gradients"][role], gradients)
            print(f"MEASURED {method} {role} {name}: gradients {gap:.1e}")
            assert gap <= SPLIT_TOLERANCE, f"{role}, {name}"
        gap = metric_gap(split["metrics"], whole["metrics"])
        print(f"MEASURED {method} {name}: metrics {gap:.1e}, {split['num_micro_batches']}")
        assert gap <= SPLIT_TOLERANCE, name


def test_parameters_kept_whole_on_every_rank_get_the_same_gradients(model_folder, two_ranks):
    rows = toy.demonstrations(8)
    shares = [rows[:3], rows[3:]]
    found = {}
    for threshold in (0, 10**6):
        placement = {"cluster": {"learner": {"persistence_threshold": threshold}}}
        config = toy.run_config("sft", model_folder("llama"), placement, num_workers=2)
        found[threshold] = two_ranks.run(learning.first_step, config, shares)[0]
    assert found[0]["is_partitioned"]
    assert not found[10**6]["is_partitioned"]
    gap = gradient_gap(found[10**6]["gradients"]["policy"], found[0]["gradients"]["policy"])
    assert gap <= SPLIT_TOLERANCE


def test_gradient_checkpointing_changes_no_gradient(model_folder, judge_folder, two_ranks):
    folder = model_folder("qwen3", tied=True)
    rows = toy.experiences(folder, GROUPS)
    found = {}
    for is_on in (False, True):
        settings = one_step_settings("ppo", judge_folder, SMALL)
        settings["model"]["gradient_checkpointing"] = is_on
        config = toy.run_config("ppo", folder, settings, num_workers=2)
        found[is_on] = two_ranks.run(learning.first_step, config, [rows[:2], rows[2:]])[0]
    for role, gradients in found[False]["gradients"].items():
        recomputed = found[True]["num_layer_passes"][role]
        assert recomputed == 2 * found[False]["num_layer_passes"][role]
        gap = gradient_gap(found[True]["gradients"][role], gradients)
        print(f"MEASURED gradient checkpointing {role}: {gap:.1e}")
        assert gap <= SPLIT_TOLERANCE


def test_sft_gradients_are_those_of_plain_transformers(model_folder, two_ranks):
    rows = toy.demonstrations(8)
    config = toy.run_config("sft", model_folder("llama"), num_workers=2)
    found = two_ranks.run(learning.first_step, config, [rows[:3], rows[3:]])[0]

    model = toy.load_policy(model_folder("llama"))
    logprobs = torch.cat(
        [
            toy.token_logprobs(model, [*row.prompt.tokens, *row.tokens])[len(row.prompt.tokens) :]
            for row in rows
        ]
    )
    loss = -logprobs.mean()
    loss.backward()
    assert found["metrics"]["loss/nll"] == pytest.approx(loss.item(), rel=1e-6)
    assert found["metrics"]["num_tokens"] == len(logprobs)
    assert plain_gap(found, model) <= SPLIT_TOLERANCE


def test_rloo_gradients_are_those_of_plain_transformers(model_folder, two_ranks):
    """On-policy and without KL: -1/B sum_k (r_k - mean of the group's others) log p(reply_k)."""
    folder = model_folder("qwen3", tied=True)
    rows = toy.experiences(folder, GROUPS, noise=0.0)
    config = toy.run_config("rloo", folder, {"algorithm": {"kl": {"coef": 0.0}}}, num_workers=2)
    found = two_ranks.run(learning.first_step, config, [rows[:2], rows[2:]])[0]

    model = toy.load_policy(folder)
    loss = torch.zeros(())
    for group in rows:
        rewards = group.rewards
        scores = [h + 0.5 * s for h, s in zip(rewards["helpful"], rewards["style"], strict=True)]
        for rollout, score in zip(group.rollouts, scores, strict=True):
            prompt = rollout.prompt.tokens
            logprob = toy.token_logprobs(model, [*prompt, *rollout.tokens])[len(prompt) :].sum()
            baseline = (sum(scores) - score) / (len(scores) - 1)
            loss = loss - (score - baseline) * logprob / sum(GROUPS)
    loss.backward()
    assert found["metrics"]["loss/policy"] == pytest.approx(loss.item(), rel=1e-5)
    assert plain_gap(found, model) <= SPLIT_TOLERANCE


def plain_gap(found: dict, model: torch.nn.Module) -> float:
    """`gradient_gap` between a learner's step and a plain model after its backward pass."""
    plain = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    gap = gradient_gap(found["gradients"]["policy"], plain)
    print(f"MEASURED against plain transformers: {gap:.1e}")
    return gap


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_the_logged_gradient_norm_is_the_one_before_clipping(max_grad_norm, model_folder, one_rank):
    rows = toy.demonstrations(6)
    settings = {"algorithm": {"optimizer": {"max_grad_norm": max_grad_norm, "betas": [0.9, 0.95]}}}
    config = toy.run_config("sft", model_folder("llama"), settings)
    raw = one_rank.run(learning.first_step, config, [rows])[0]
    applied = one_rank.run(learning.optimizer_step, config, [rows])[0]

    norm = global_norm(raw["gradients"]["policy"])
    assert norm > 1
    assert raw["metrics"]["grad_norm"] == pytest.approx(norm, rel=1e-5)
    # After one step AdamW's first moment is (1 - beta1) times the gradient that was applied.
    expected = 0.1 * (norm if max_grad_norm is None else max_grad_norm)
    assert global_norm(applied["moments"]) == pytest.approx(expected, rel=1e-4)


def global_norm(tensors: dict[str, np.ndarray]) -> float:
    """Euclidean norm of everything."""
    return (
        float(sum(np.square(tensor.astype(np.float64)).sum() for tensor in tensors.values())) ** 0.5
    )


def test_warm_up_reaches_the_optimizer(model_folder, one_rank):
    settings = {"algorithm": {"optimizer": {"learning_rate": 1e-3, "warmup_steps": 4}}}
    config = toy.run_config("sft", model_folder("llama"), settings)
    found = one_rank.run(learning.optimizer_step, config, [toy.demonstrations(6)])[0]
    assert found["metrics"]["learning_rate"] == pytest.approx(1e-3 / 4)
    # AdamW's first step moves every weight that has a gradient by the learning rate.
    largest = max(float(np.abs(change).max()) for change in found["changes"].values())
    assert largest == pytest.approx(1e-3 / 4, rel=1e-3)


def test_the_first_minibatch_of_ppo_sees_an_unmoved_policy(model_folder, judge_folder, two_ranks):
    folder = model_folder("qwen3", tied=True)
    rows = toy.experiences(folder, GROUPS)
    found = {}
    for num_epochs in (1, 3):
        settings = one_step_settings("ppo", judge_folder, SMALL)
        settings["algorithm"]["num_epochs"] = num_epochs
        config = toy.run_config("ppo", folder, settings, num_workers=2)
        step = two_ranks.run(learning.first_step, config, [rows[:2], rows[2:]])[0]
        found[num_epochs] = step["metrics"]
    assert found[1]["ratio/mean"] == pytest.approx(1, abs=1e-6)
    assert found[1]["clip_fraction"] == 0
    assert found[1]["approx_kl"] == pytest.approx(0, abs=1e-7)
    assert found[3]["approx_kl"] > 1e-4  # the next epochs see that it has moved
    assert found[3]["clip_fraction"] > 0


@pytest.mark.parametrize(
    ("family", "is_tied"), [("llama", False), ("llama", True), ("qwen3", False), ("qwen3", True)]
)
def test_log_probs_are_those_of_plain_transformers(
    family, is_tied, model_folder, judge_folder, one_rank, two_ranks
):
    folder = model_folder(family, tied=is_tied)
    rows = toy.experiences(folder, GROUPS)
    settings = one_step_settings("ppo", judge_folder, 2 * SMALL)
    settings["data"] = {"sampling": {"temperature": 0.7}}
    plain = plain_answers(folder, judge_folder, rows, temperature=0.7)
    for ranks, shares in ((one_rank, [rows]), (two_ranks, [rows[:1], rows[1:]])):
        config = toy.run_config("ppo", folder, settings, num_workers=len(shares))
        parts = ranks.run(learning.answers, config, shares)
        for name, expected in plain.items():
            found = [row for part in parts for row in part[name]]
            gap = largest_gap(found, expected)
            print(f"MEASURED {family} tied={is_tied} {len(shares)} ranks {name}: {gap:.1e}")
            assert gap <= 1e-5, f"{name} on {len(shares)} ranks"


def plain_answers(
    policy: Path, judge: Path, rows: list, temperature: float
) -> dict[str, list[np.ndarray]]:
    """What `learning.answers` gives, from plain transformers, one sequence at a time."""
    model = toy.load_policy(policy)
    critic = AutoModelForSequenceClassification.from_pretrained(judge, dtype=torch.float32).eval()
    found: dict[str, list[np.ndarray]] = {
        "logprobs": [],
        "values": [],
        "entropies": [],
        "probes": [],
    }
    with torch.no_grad():
        for rollout in (rollout for row in rows for rollout in row.rollouts):
            start = len(rollout.prompt.tokens)
            tokens = [*rollout.prompt.tokens, *rollout.tokens.tolist()]
            ids = torch.tensor([tokens])
            found["logprobs"].append(toy.token_logprobs(model, tokens, temperature)[start:].numpy())
            found["probes"].append(toy.token_logprobs(model, tokens).numpy())
            before = (model(ids).logits[0, start - 1 : -1] / temperature).log_softmax(-1)
            found["entropies"].append(-(before.exp() * before).sum(-1).numpy())
            hidden = critic.model(ids).last_hidden_state[0, start - 1 : -1]
            found["values"].append(critic.score(hidden).squeeze(-1).numpy())
    return found


def largest_gap(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    """Largest absolute difference over lists of arrays."""
    return max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True))


def test_bfloat16_stays_within_stated_bounds_of_float32(model_folder, judge_folder, two_ranks):
    folder = model_folder("qwen3", tied=True)
    rows = toy.experiences(folder, GROUPS)
    logprobs, steps = {}, {}
    for dtype in ("float32", "bfloat16"):
        settings = one_step_settings("ppo", judge_folder, SMALL)
        settings["model"]["dtype"] = dtype
        config = toy.run_config("ppo", folder, settings, num_workers=2)
        parts = two_ranks.run(learning.answers, config, [rows[:2], rows[2:]])
        logprobs[dtype] = [row for part in parts for row in part["logprobs"]]
        steps[dtype] = two_ranks.run(learning.first_step, config, [rows[:2], rows[2:]])[0]
    assert 1e-4 < largest_gap(logprobs["bfloat16"], logprobs["float32"]) <= 0.1
    assert steps["bfloat16"]["metrics"]["ratio/mean"] == pytest.approx(1, abs=1e-3)
    for role, gradients in steps["float32"]["gradients"].items():
        assert 1e-4 < gradient_gap(steps["bfloat16"]["gradients"][role], gradients) <= 0.1


def test_bfloat16_micro_batches_add_up_in_float32(model_folder, one_rank):
    row = toy.demonstrations(1)[0]
    settings = {"model": {"dtype": "bfloat16"}, "algorithm": {"tokens_per_micro_batch": 32}}
    config = toy.run_config("sft", model_folder("llama"), settings)
    once = one_rank.run(learning.first_step, config, [[row]])[0]
    often = one_rank.run(learning.first_step, config, [[row] * 256])[0]
    assert often["num_micro_batches"]["policy"] >= 128
    gap = gradient_gap(often["gradients"]["policy"], once["gradients"]["policy"])
    print(f"MEASURED bf16 accumulation {gap:.1e}")
    assert gap <= 1e-5
