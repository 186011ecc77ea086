"""A judge that raises, hangs, lies or dies: tried again, replaced, and never taken for a number."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from cluster.scoring import ScoringGroup, merge_scores, reward_groups
from rl.types import Prompt, Rollout, VersionSpan
from tests.integration.loop import tiny_run

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(200)]


def rollout(text: str) -> Rollout:
    return Rollout(
        group_id=1,
        sample=0,
        prompt=Prompt(row=0, text="where?", tokens=(5,), extra={}),
        tokens=np.asarray([7], dtype=np.int32),
        text=text,
        rollout_logprobs=np.zeros(1, dtype=np.float32),
        versions=(VersionSpan(version=0, start=0, end=1),),
        finish_reason="stop",
        seed=0,
        engine="engine-0",
    )


def group(tmp_path: Path, model: Path, prompts: Path, code: str, **feedback: float) -> ScoringGroup:
    """The group of a run whose reward function is `code`; MARK is a file it may keep state in."""
    file = tmp_path / "judge_under_test.py"
    file.write_text(f"MARK = {str(tmp_path / 'mark')!r}\nimport os, time\n{code}")
    config = tiny_run(
        model,
        prompts,
        tmp_path / "run",
        f"feedback.rewards.judge.path={file}",
        *(f"feedback.{name}={value}" for name, value in feedback.items()),
    )
    return reward_groups(config)["judge"]


def score(judge: ScoringGroup, *replies: str) -> tuple[float, ...]:
    parts = asyncio.run(judge.score([rollout(reply) for reply in replies]))
    return merge_scores(parts)["judge"]


FIRST_CALL = "first = not os.path.exists(MARK); open(MARK, 'w').close()"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def reward(p, r, rows): raise KeyError('price')", "price"),
        ("def reward(p, r, rows): return [float('nan')] * len(r)", "nan"),
        ("def reward(p, r, rows): return [1.0]", "1 scores for 2 replies"),
        ("def reward(p, r, rows): return ['good'] * len(r)", "'good'"),
    ],
)
def test_a_judge_that_never_answers_right_fails_the_call_and_says_why(
    tmp_path: Path, world_model: Path, world_prompts: Path, code: str, message: str
) -> None:
    judge = group(tmp_path, world_model, world_prompts, code, attempts=2)
    with pytest.raises(RuntimeError, match=message) as caught:
        score(judge, "a", "b")
    assert "reward judge failed 2 times (phase: score)" in str(caught.value)
    assert judge.retries == 2


@pytest.mark.parametrize(
    "failure", ["time.sleep(600)", "os._exit(3)", "raise RuntimeError('busy')"]
)
def test_a_judge_that_fails_once_is_asked_again_and_no_score_is_lost(
    tmp_path: Path, world_model: Path, world_prompts: Path, failure: str
) -> None:
    code = (
        f"def reward(p, r, rows):\n    {FIRST_CALL}\n    if first: {failure}\n"
        "    return [len(reply) for reply in r]\n"
    )
    judge = group(tmp_path, world_model, world_prompts, code, attempts=2, deadline_s=5)
    assert score(judge, "", "four") == (0.0, 4.0)
    assert judge.retries == 1
