"""Frozen models: alone in a process, and partitioned over a group, they answer alike."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from actors.frozen import FrozenModel
from actors.reference import Reference
from actors.specs import FrozenSpec
from tests.integration import toy
from tests.integration.processes import Ranks, free_port
from tests.integration.test_learner import largest_gap, plain_answers

Kind = Literal["policy", "value"]
Shares = list[tuple[list[list[int]], list[int]]]
"""Per rank, sequences and where their replies start."""


def spec_of(kind: Kind, path: Path, *, rank: int = 0, world_size: int = 1) -> FrozenSpec:
    """Micro-batches of 64 tokens: two or three sequences."""
    return FrozenSpec(
        kind=kind,
        path=str(path),
        dtype="float32",
        device="cpu",
        max_tokens=64,
        rank=rank,
        world_size=world_size,
    )


def group_outputs(
    kind: Kind, path: Path, address: str, calls: list[Shares]
) -> list[list[np.ndarray]]:
    """A rank's outputs for its share of every call; the process joins the group by itself."""
    import os

    import torch.distributed as dist

    rank = int(os.environ["RANK"])
    model = FrozenModel(spec_of(kind, path, rank=rank, world_size=2), address)
    parameters = model.network.parameters()  # pyright: ignore[reportFunctionMemberAccess]
    assert any(p.ds_tensor.numel() < p.ds_numel for p in parameters), "nothing is partitioned"
    found = [[o.numpy().copy() for o in model.outputs(*shares[rank], 0.7)] for shares in calls]
    dist.destroy_process_group()
    return found


@pytest.mark.slow
def test_a_group_of_two_answers_like_one_process(model_folder, judge_folder):
    policy = model_folder("qwen3", tied=True)
    rows = toy.experiences(policy, (3, 2, 4))
    rollouts = [rollout for row in rows for rollout in row.rollouts]
    sequences = [[*r.prompt.tokens, *r.tokens.tolist()] for r in rollouts]
    starts = [len(r.prompt.tokens) for r in rollouts]

    def dealt(*borders: tuple[int, int]) -> Shares:
        return [(sequences[slice(*border)], starts[slice(*border)]) for border in borders]

    calls = [dealt((0, 5), (5, 9)), dealt((0, 1), (1, 9))]  # an odd number; one rank mostly idle
    plain = plain_answers(policy, judge_folder, rows, temperature=0.7)
    with Ranks(2, is_joined=False) as ranks:
        cases: list[tuple[Kind, Path, str]] = [
            ("policy", policy, "logprobs"),
            ("value", judge_folder, "values"),
        ]
        for kind, path, name in cases:
            alone = FrozenModel(spec_of(kind, path)).outputs(sequences, starts, 0.7)
            address = f"127.0.0.1:{free_port()}"
            parts = ranks.run(group_outputs, kind, path, address, calls)
            own = [row.numpy() for row in alone]
            print(f"MEASURED frozen {kind} alone: {largest_gap(own, plain[name]):.1e}")
            assert largest_gap(own, plain[name]) <= 1e-5
            for answers in zip(*parts, strict=True):
                found = [row for share in answers for row in share]
                print(f"MEASURED frozen {kind} in a group: {largest_gap(found, own):.1e}")
                assert largest_gap(found, own) <= 1e-5


def test_the_reference_answers_at_the_sampling_temperature(model_folder):
    folder = model_folder("llama")
    rollouts = [rollout for group in toy.experiences(folder, (3, 2)) for rollout in group.rollouts]
    found = Reference(spec_of("policy", folder), 0.5).logprobs(rollouts)
    model = toy.load_policy(folder)
    for rollout, logprobs in zip(rollouts, found, strict=True):
        prompt = rollout.prompt.tokens
        with torch.no_grad():
            plain = toy.token_logprobs(model, [*prompt, *rollout.tokens], 0.5)[len(prompt) :]
        assert logprobs.dtype == np.float32
        assert logprobs == pytest.approx(plain.numpy(), abs=1e-5)


def test_padding_and_company_do_not_change_an_answer(judge_folder):
    model = FrozenModel(spec_of("value", judge_folder))
    short, long = [5, 6, 7], list(range(4, 34))
    alone: Any = model.outputs([short], [1])[0]
    beside: Any = model.outputs([long, short], [0, 1])[1]
    assert beside.numpy() == pytest.approx(alone.numpy(), abs=1e-6)
