"""A run whose judge and reference are ZeRO-3 groups, while Ray's usual port is taken."""

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from actors.frozen import FrozenModel
from actors.specs import FrozenSpec
from cluster.inputs import read_inputs
from cluster.scoring import merge_scores, reward_groups
from configs.schema import RunConfig
from rl.data.encode import encode_for_reward
from rl.data.stored import stored_rollouts
from rl.types import Demonstration, Prompt, Rollout
from rl.world.model import write_model
from tests.integration.loop import tiny_run
from tests.integration.test_run import finish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DASHBOARD_PORT = 8265


@contextmanager
def taken(port: int) -> Iterator[None]:
    """Somebody listens on the port, this test if nobody else does."""
    with socket.socket() as listener:
        with suppress(OSError):
            listener.bind(("127.0.0.1", port))
            listener.listen()
        yield


def write_judge(policy: Path, folder: Path, seed: int = 5) -> Path:
    """A reward model of random weights with the policy's tokenizer."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(policy).save_pretrained(folder)
    return folder


def rows_of(config: RunConfig) -> list[dict]:
    files = sorted(Path(config.cluster.run_dir, "experience").rglob("*.parquet"))
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


def alone(kind: str, path: str) -> FrozenModel:
    spec = FrozenSpec(kind=kind, path=path, dtype="float32", device="cpu", max_tokens=4096)  # pyright: ignore[reportArgumentType]
    return FrozenModel(spec)


def test_groups_of_two_answer_in_a_run_as_one_process_does(
    world_model: Path, world_prompts: Path, tmp_path: Path
) -> None:
    judge = write_judge(world_model, tmp_path / "judge")
    config = tiny_run(
        world_model,
        world_prompts,
        tmp_path / "run",
        "algorithm.num_steps=2",
        "feedback.rewards.rm.kind=model",
        f"feedback.rewards.rm.path={judge}",
        "cluster.reward.num_workers=2",
        "cluster.reference.num_workers=2",
        "cluster.dashboard=true",
    )
    with taken(DASHBOARD_PORT):
        result = finish(config)
    assert result.returncode == 0, result.stderr

    rows = rows_of(config)
    assert len(rows) == 2 * 8 * 4
    sequences = [[*row["prompt_tokens"], *row["tokens"]] for row in rows]
    starts = [len(row["prompt_tokens"]) for row in rows]
    reference = alone("policy", str(world_model)).outputs(sequences, starts)
    for row, logprobs in zip(rows, reference, strict=True):
        assert row["ref_logprobs"] == pytest.approx(logprobs.tolist(), abs=1e-5)

    prompts = [Prompt(tokens=(0,), text=row["prompt"], row=0, extra={}) for row in rows]
    tokenizer = AutoTokenizer.from_pretrained(judge)
    encoded = encode_for_reward(prompts, [row["reply"] for row in rows], tokenizer)
    values = alone("value", str(judge)).outputs(
        [[*tokens, 0] for tokens in encoded], [len(tokens) for tokens in encoded]
    )
    scores = [dict(row["rewards"])["rm"] for row in rows]
    assert scores == pytest.approx([float(value[0]) for value in values], abs=1e-5)
    assert max(scores) - min(scores) > 1e-2, "a judge that says the same of all shows nothing"
    logs = {file.name for file in Path(config.cluster.run_dir, "logs").glob("re*-1.log")}
    assert logs == {"reference-1.log", "reward-rm-1.log"}, "there was no second worker"
    assert json.loads(Path(config.cluster.run_dir, "summary.json").read_text())["steps"] == 2


def test_judges_of_several_models_answer_alike_from_one_or_two_workers(
    ray_cluster: None, world_model: Path, world_prompts: Path, tmp_path: Path
) -> None:
    first, second = (write_judge(world_model, tmp_path / f"judge-{n}", n) for n in (5, 6))
    write_model(tmp_path / "taught", seed=9)
    run = tiny_run(
        world_model, world_prompts, tmp_path / "run",
        "feedback.rewards.judge=null",
        f"feedback.rewards.all={{kind: ensemble, paths: [{first}, {second}], reduce: minimum}}",
        f"feedback.rewards.own={{kind: implicit, path: {tmp_path / 'taught'}, "
        f"reference: {world_model}, beta: 0.1}}",
    )  # fmt: skip
    prompts = read_inputs(run).train[:9]
    rollouts = [reply(prompt, other.text) for prompt, other in pairwise([*prompts, prompts[0]])]

    async def answers(num_workers: int) -> dict[str, tuple[float, ...]]:
        reward = run.cluster.reward.model_copy(update={"num_workers": num_workers})
        cluster = run.cluster.model_copy(update={"reward": reward})
        groups = reward_groups(run.model_copy(update={"cluster": cluster}))
        found: dict[str, tuple[float, ...]] = {}
        for group in groups.values():
            found |= merge_scores(await group.score(rollouts))
            group.end()
        return found

    one, two = asyncio.run(answers(1)), asyncio.run(answers(2))
    assert list(one) == ["all", "all/disagreement", "own"]
    for name, values in one.items():
        assert two[name] == pytest.approx(values, abs=1e-5), name
        assert max(values) - min(values) > 1e-3, f"{name} says the same of all"


def reply(prompt: Prompt, text: str) -> Rollout:
    """Any text as a reply."""
    (rollout,) = stored_rollouts(
        prompt.row, Demonstration(prompt=prompt, text=text, tokens=(*prompt.tokens, 1)), 0
    )
    return rollout
