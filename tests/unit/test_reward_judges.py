from pathlib import Path

import numpy as np
import pytest

from actors.reward import FunctionReward, GoldReward, build_judge, load_function
from configs.schema import RewardConfig
from rl.types import Prompt, Rollout, VersionSpan
from rl.world.gazetteer import PLACES
from rl.world.gold import PARTS


def rollout(text: str, **extra: object) -> Rollout:
    prompt = Prompt(row=3, text="Which one?", tokens=(4, 5), extra=extra)
    return Rollout(
        group_id=0,
        sample=0,
        prompt=prompt,
        tokens=np.array([6, 1], np.int32),
        text=text,
        rollout_logprobs=np.zeros(2, np.float32),
        versions=(VersionSpan(version=0, start=0, end=2),),
        finish_reason="stop",
        seed=0,
        engine="engine-0",
    )


REPLIES = [rollout("a b", quality=2), rollout("a", quality=5)]


def judge(tmp_path: Path, body: str) -> FunctionReward:
    """A reward `r` whose function has one line."""
    file = tmp_path / "rewards.py"
    file.write_text(
        f"import numpy\nimport torch\ndef reward(prompts, replies, rows):\n    {body}\n"
    )
    return FunctionReward("r", str(file))


def test_a_function_reads_prompts_replies_and_rows(tmp_path):
    body = "return [len(p) + len(r) + row['quality'] for p, r, row in zip(prompts, replies, rows)]"
    assert judge(tmp_path, body).score(REPLIES) == {"r": (10 + 3 + 2, 10 + 1 + 5)}


@pytest.mark.parametrize(
    "value",
    ["(1, 2.5)", "numpy.array([1, 2.5])", "torch.tensor([1, 2.5])", "(x for x in [1, 2.5])"],
)
def test_any_ordered_numbers_are_scores(value, tmp_path):
    scores = judge(tmp_path, f"return {value}").score(REPLIES)["r"]
    assert scores == (1.0, 2.5)
    assert all(type(score) is float for score in scores)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", r"^reward r: .*rewards\.py raised ZeroDivisionError: division by zero$"),
        ("return rows[0]['nothing']", r"^reward r: .*rewards\.py raised KeyError: 'nothing'$"),
        (
            "return [1.0, float('nan')]",
            r"^reward r returned nan for reply 1 \('a'\); return a finite",
        ),
        (
            "return [float('inf'), 1]",
            r"^reward r returned inf for reply 0 \('a b'\); return a finite",
        ),
        ("return [1.0, -1e999]", r"^reward r returned -inf for reply 1"),
        ("return [1.0]", r"^reward r returned 1 scores for 2 replies; return one per reply"),
        ("return []", r"^reward r returned 0 scores for 2 replies"),
        ("return {'a': 1, 'b': 2}", r"^reward r returned dict; return a list of floats"),
        ("return {1.0, 2.0}", r"^reward r returned set; return a list of floats"),
        ("return '12'", r"^reward r returned str; return a list of floats"),
        ("return b'12'", r"^reward r returned bytes; return a list of floats"),
        ("return ['good', 'bad']", r"^reward r returned 'good' for reply 0; return a float"),
        ("return [1.0, None]", r"^reward r returned None for reply 1; return a float"),
        ("return [[1.0], [2.0]]", r"^reward r returned \[1.0\] for reply 0; return a float"),
        ("return None", r"^reward r returned NoneType; return a list of floats"),
        ("return 0.5", r"^reward r returned float; return a list of floats"),
        ("return numpy.array(0.5)", r"^reward r returned ndarray; return a list of floats"),
        ("return torch.tensor(0.5)", r"^reward r returned Tensor; return a list of floats"),
    ],
)
def test_what_is_no_score_is_refused_in_one_line(body, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        judge(tmp_path, body).score(REPLIES)
    assert "\n" not in str(caught.value)


def test_a_function_may_have_another_name(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def shortness(prompts, replies, rows):\n    return [-len(r) for r in replies]")
    reward = RewardConfig(kind="function", path=f"{file}:shortness")
    assert build_judge("short", reward).score(REPLIES) == {"short": (-3.0, -1.0)}


def test_a_file_may_hold_dataclasses_and_have_any_suffix(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Score:\n"
        "    value: float = 2.0\n"
        "def reward(prompts, replies, rows):\n"
        "    return [Score().value for _ in replies]\n"
    )
    assert FunctionReward("r", str(file)).score(REPLIES) == {"r": (2.0, 2.0)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no such file; give the path of a Python file with `reward`$"),
        ("x = 1", r"has no function reward\(prompts, replies, rows\)$"),
        ("reward = 1", r"has no function reward\(prompts, replies, rows\)$"),
        ("import no_such_module", r"importing it failed: ModuleNotFoundError: No module named"),
        ("def reward(:", r"importing it failed: SyntaxError: invalid syntax"),
        ("raise SystemExit(3)", r"importing it failed: SystemExit: 3$"),
    ],
)
def test_a_file_without_a_usable_function_is_refused_by_name(content, message, tmp_path):
    file = tmp_path / "mine.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_function(str(file))
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_file_of_functions(tmp_path):
    with pytest.raises(ValueError, match=r"no such file; give the path of a Python file"):
        load_function(str(tmp_path))


def test_the_gold_reward_keeps_its_parts_under_its_own_name():
    place = next(iter(PLACES.values()))
    right = f"the {place.name} opens at {place.opens} ."
    wrong = f"the {place.name} opens at {place.opens + 1} ."
    replies = [rollout(text, place=place.name, question="opens") for text in (right, wrong)]
    scores = GoldReward("truth").score(replies)
    assert set(scores) == {"truth", *(f"truth/{part}" for part in PARTS)}
    assert scores["truth/answers"] == (1.0, 1.0)
    # The name is one true claim; the asked fact counts twice.
    assert scores["truth/true"] == (1.0, pytest.approx(1 / 3))
    assert scores["truth"][0] > scores["truth"][1] > 0


def test_the_gold_reward_refuses_rows_of_another_world():
    request = {"place": next(iter(PLACES)), "question": "opens"}
    with pytest.raises(ValueError, match=r"row 1: place=None, question=None is no request of the"):
        GoldReward("gold").score([rollout("a", **request), rollout("a")])
