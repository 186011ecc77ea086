"""An engine leaves amid its replies: another one goes on from their tokens, as if nothing was."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import ray

from actors.frozen import FrozenModel
from actors.rollout import SampleRequest
from actors.specs import FrozenSpec
from cluster.engines import start_engines
from cluster.fleet import Fleet
from rl.types import Prompt, Rollout
from tests.integration.loop import tiny_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(400)]

LENGTH = 240


def requests(count: int) -> list[SampleRequest]:
    return [
        SampleRequest(
            group_id=group,
            prompt=Prompt(row=0, text="", tokens=(5 + group, 6, 7), extra={}),
            num_samples=3,
            seed=10 * group,
            with_greedy=True,
        )
        for group in range(count)
    ]


async def sampled_while_one_leaves(fleet: Fleet) -> tuple[list[list[Rollout]], int]:
    """All groups, and how many were under way on the engine when it left."""
    asked = asyncio.create_task(fleet.generate(requests(8)))
    leaver = fleet.engines[0]
    while await leaver.actor.num_flying.remote() < 8:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.5)  # let it write some tokens; 240 take seconds
    flying = len(fleet._seats[leaver.key].flying)
    await fleet.release(leaver.key)
    assert leaver.key not in [engine.key for engine in fleet.engines]
    return await asked, flying


def test_replies_are_continued_from_their_tokens(
    world_model: Path, world_prompts: Path, tmp_path: Path
) -> None:
    config = tiny_run(
        world_model, world_prompts, tmp_path / "run", "cluster.rollout.num_engines=2",
        "model.max_length=256", f"data.sampling.max_new_tokens={LENGTH}",
    )  # fmt: skip
    engines = start_engines(config)
    ray.get([engine.actor.start.remote() for engine in engines], timeout=240)
    groups, flying = asyncio.run(sampled_while_one_leaves(Fleet(config, engines)))
    assert flying > 0, "the engine had nothing to hand over"
    assert [len(group) for group in groups] == [4] * 8
    replies = [reply for group in groups for reply in group]
    for reply in replies:
        assert reply.finish_reason in ("stop", "length")
        assert len(reply.tokens) <= LENGTH
    # What two engines wrote has two spans of one version; its log-probs are the policy's own.
    continued = [reply for reply in replies if len(reply.versions) > 1]
    assert continued, "no reply was begun by one engine and ended by another"
    assert {reply.engine for reply in continued} == {engines[1].name}
    spec = FrozenSpec(
        kind="policy", path=str(world_model), dtype="float32", device="cpu", max_tokens=4096
    )
    sequences = [[*reply.prompt.tokens, *reply.tokens.tolist()] for reply in continued]
    own = FrozenModel(spec).outputs(sequences, [len(r.prompt.tokens) for r in continued])
    for reply, logprobs in zip(continued, own, strict=True):
        if not reply.is_greedy:  # vLLM reports those of the greedy choice, which has none to lose
            assert np.abs(reply.rollout_logprobs - logprobs.numpy()).max() <= 1e-4
    # Another one of the same group is asked for anew, and nobody is mistaken for a later sample.
    assert [[reply.sample for reply in group] for group in groups] == [[0, 1, 2, 3]] * 8
    for engine in engines:
        ray.kill(engine.actor)
