"""What a judge's files lack is said before a run starts, under the setting that named them."""

import json

import pytest

from cluster.groups import is_constant
from cluster.inputs import check_reward
from configs.load import load_config
from configs.paths import absolute_paths
from configs.schema import RewardConfig
from rl.types import Experience
from tests.unit.test_feedback_checks import BASE
from tests.unit.test_model_judges import rollout, write_classifier


def refusal(**settings):
    with pytest.raises(ValueError, match=r"^feedback\.rewards\.r") as caught:
        check_reward("feedback.rewards.r", RewardConfig(**settings))
    return str(caught.value)


def test_folders_of_every_kind_are_accepted(tmp_path, model_folder, judge_folder):
    policy, other = str(model_folder("qwen3")), str(model_folder("llama"))
    labels, judge = str(write_classifier(tmp_path / "c", 2)), str(judge_folder)
    question = tmp_path / "question.txt"
    question.write_text("{prompt}{first}{second}")
    for reward in (
        RewardConfig(kind="implicit", path=policy, reference=other, beta=1.0),
        RewardConfig(kind="classifier", path=labels, positive=1),
        RewardConfig(kind="ensemble", paths=(judge, judge)),
        RewardConfig(kind="ranker", path=judge, prompt_file=str(question)),
        RewardConfig(kind="llm_judge", path=policy, prompt_file=str(question)),
    ):
        check_reward("feedback.rewards.r", reward)


def test_folders_that_a_judge_cannot_be_made_of_are_refused(tmp_path, model_folder, judge_folder):
    policy, judge = str(model_folder("qwen3")), str(judge_folder)
    labels = str(write_classifier(tmp_path / "c", 3))
    missing = str(tmp_path / "none")
    line = refusal(kind="ensemble", paths=(judge, missing))
    assert line.startswith(f"feedback.rewards.r.paths.1: {missing} is not a folder")
    line = refusal(kind="classifier", path=labels, positive=3)
    assert line.startswith("feedback.rewards.r.path: positive=3, but")
    assert "has 3 labels; a ranker has one logit" in refusal(kind="ranker", path=labels)
    config = write_classifier(tmp_path / "d", 1) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 7}))
    line = refusal(kind="implicit", path=policy, reference=str(config.parent), beta=1.0)
    assert line.startswith("feedback.rewards.r.reference: ")
    assert "another vocabulary" in line


def test_every_path_of_a_judge_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rewards = [
        "feedback.rewards.e={kind: ensemble, paths: [p, q]}",
        "feedback.rewards.i={kind: implicit, path: p, reference: q, beta: 1}",
        "feedback.rewards.l={kind: llm_judge, path: p, prompt_file: f}",
    ]
    found = absolute_paths(load_config(None, rewards, base=BASE)).feedback.rewards
    assert found["e"].paths == (f"{tmp_path}/p", f"{tmp_path}/q")
    assert found["i"].reference == f"{tmp_path}/q"
    assert found["l"].prompt_file == f"{tmp_path}/f"


def test_a_group_is_constant_for_training_only_where_nothing_tells_its_replies_apart():
    def constant(combine, **rewards):
        settings = [f"feedback.rewards.{name}.kind=gold" for name in rewards]
        config = load_config(
            None,
            [*settings, "feedback.rewards.gold=null", f"feedback.combine={combine}"],
            base=BASE,
        )
        replies = (rollout("a"), rollout("b"))
        logprobs = tuple(reply.rollout_logprobs for reply in replies)
        experience = Experience(
            rollouts=replies, rewards=rewards, ref_logprobs=logprobs, attempts=1
        )
        return is_constant(experience, config)

    traded = {"a": (1.0, 2.0), "b": (2.0, 1.0)}
    assert constant("weighted", **traded)
    assert not constant("group_minimum", **traded)
    assert constant("group_minimum", a=(1.0, 1.0), b=(2.0, 2.0))
