"""Which judges a run takes over from the one before: real actors, asked and handed on."""

import asyncio
from pathlib import Path

import pytest

from cluster.inputs import read_inputs
from cluster.scoring import ScoringGroup, merge_scores, reward_groups
from configs.schema import RunConfig
from rl.data.stored import stored_rollouts
from rl.types import Demonstration
from tests.integration.loop import tiny_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


async def score(group: ScoringGroup, config: RunConfig) -> float:
    prompt = read_inputs(config).train[0]
    demonstration = Demonstration(prompt=prompt, text="a b.", tokens=(*prompt.tokens, 1))
    return merge_scores(await group.score(stored_rollouts(0, demonstration, 0)))["judge"][0]


def test_a_judge_is_handed_on_unless_it_has_changed(
    ray_cluster: None, world_model: Path, world_prompts: Path, tmp_path: Path
) -> None:
    first, second, other = (
        tiny_run(world_model, world_prompts, tmp_path / name, *more)
        for name, more in (
            ("first", ()),
            ("second", ("feedback.rewards.judge.weight=0.5",)),
            ("other", ("cluster.reward.cpus_per_worker=0.25",)),
        )
    )

    async def walk() -> None:
        judge = reward_groups(first)["judge"]
        expected = await score(judge, first)
        (worker,) = judge.workers
        new, unlike = reward_groups(second)["judge"], reward_groups(other)["judge"]
        idle = [judge]
        unlike.adopt(idle, str(tmp_path / "other"))
        assert unlike.workers == []
        assert idle == [judge]
        new.adopt(idle, str(tmp_path / "second"))
        assert new.workers == [worker]
        assert idle == [], "what was taken over is still listed to be ended"
        assert await score(new, second) == expected
        assert (tmp_path / "second" / "logs" / "reward-judge-0.log").exists()

        # One that was made to answer from elsewhere is like none that is started anew.
        await new.respawn(new.spawn)
        await new.ready()
        again = reward_groups(first)["judge"]
        again.adopt([new], str(tmp_path / "first"))
        assert again.workers == []
        new.end()

    asyncio.run(walk())
