"""A judge that raises, hangs, lies or dies: tried again, replaced, and never taken for a number."""

import asyncio
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray

from cluster.events import read_events
from cluster.scoring import ScoringGroup, check_scores, merge_scores, reward_groups
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
    ("failure", "event", "reason"),
    [
        ("time.sleep(30)", "judge_replaced", "no answer within 5 s (feedback.deadline_s)"),
        ("os._exit(3)", "judge_replaced", "its process died"),
        ("raise RuntimeError('busy')", "judge_failed", "RuntimeError: busy"),
        ("return [float('nan')] * len(r)", "judge_failed", "returned nan for reply 0"),
        ("return [1.0]", "judge_failed", "returned 1 scores for 2 replies"),
    ],
)
def test_a_judge_that_fails_once_is_asked_again_and_no_score_is_lost(
    tmp_path: Path, world_model: Path, world_prompts: Path, failure: str, event: str, reason: str
) -> None:
    code = (
        f"def reward(p, r, rows):\n    {FIRST_CALL}\n    if first: {failure}\n"
        "    return [len(reply) for reply in r]\n"
    )
    (tmp_path / "run").mkdir()
    judge = group(tmp_path, world_model, world_prompts, code, attempts=2, deadline_s=5)
    assert score(judge, "", "four") == (0.0, 4.0)
    assert judge.retries == 1
    (told,) = read_events(tmp_path / "run")
    assert (told["kind"], told["judge"]) == (event, "reward judge")
    assert reason in told["reason"]


@pytest.mark.parametrize("dies", [1, 9])
def test_a_judge_that_dies_while_it_loads_is_started_anew_for_some_times(
    tmp_path: Path, world_model: Path, world_prompts: Path, dies: int
) -> None:
    code = (
        "tries = os.path.getsize(MARK) if os.path.exists(MARK) else 0\n"
        f"open(MARK, 'a').write('x')\nif tries < {dies}: os._exit(3)\n"
        "def reward(p, r, rows): return [len(reply) for reply in r]\n"
    )
    (tmp_path / "run").mkdir()
    judge = group(tmp_path, world_model, world_prompts, code, attempts=2)
    if dies == 1:
        assert score(judge, "", "four") == (0.0, 4.0)
    else:
        with pytest.raises(RuntimeError, match="reward judge died 2 times while it loaded"):
            asyncio.run(judge.ready())
    told = read_events(tmp_path / "run")
    assert [event["kind"] for event in told] == ["judge_replaced"] * min(dies, 2)
    judge.end()


class Liar:
    """A worker of a reward that answers with what it was made of, one answer a call."""

    def __init__(self, answers: list[dict[str, tuple[float, ...]]]) -> None:
        self.answers = iter(answers)

    def load(self, address: str) -> None:
        """There is nothing to load."""

    def score(self, rollouts: list[Rollout]) -> dict[str, tuple[float, ...]]:
        return next(self.answers)


def test_what_any_judge_s_process_answers_is_checked_before_it_is_a_score(tmp_path: Path) -> None:
    answers: list[dict[str, tuple[float, ...]]] = [
        {"judge": (1.0,)},
        {"jugde": (1.0, 2.0)},
        {"judge": (1.0, 2.0), "judge/part": (1.0, float("inf"))},
        {"judge": (1.0, 2.0), "judge/part": (3.0, 4.0)},
    ]
    judge = ScoringGroup(
        "reward judge",
        lambda: [ray.remote(Liar).options(num_cpus=0).remote(answers)],
        deadline_s=60,
        attempts=4,
        start_deadline_s=60,
        run_dir=str(tmp_path),
        check=partial(check_scores, "judge"),
    )
    assert score(judge, "a", "b") == (1.0, 2.0)
    assert [event["reason"].partition(";")[0] for event in read_events(tmp_path)] == [
        "reward judge returned 1 scores for 2 replies",
        "reward judge: no scores of this name in what its judge returned",
        "reward judge/part returned inf for reply 1 ('b')",
    ]
    judge.end()
