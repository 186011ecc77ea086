"""Every kind of reward asks for its files and refuses what it does not know, in one line."""

import pytest

from configs.load import ConfigError, load_config
from configs.plan import derive
from configs.preference_checks import num_replies

BASE = {
    "model": {"path": "m", "max_length": 128},
    "data": {"train": "t", "prompts_per_step": 8, "samples_per_prompt": 2,
             "sampling": {"max_new_tokens": 64}},
    "feedback": {"rewards": {"gold": {"kind": "gold"}}},
    "algorithm": {"name": "rloo", "num_steps": 10},
    "cluster": {"run_dir": "r"},
}  # fmt: skip
KINDS = {
    "implicit": "{kind: implicit, path: p, reference: q, beta: 0.1}",
    "classifier": "{kind: classifier, path: p, positive: 0}",
    "ensemble": "{kind: ensemble, paths: [p, q]}",
    "ranker": "{kind: ranker, path: p}",
    "llm_judge": "{kind: llm_judge, path: p, prompt_file: f}",
}
BOUND = ("feedback.rewards.safe.kind=gold", "feedback.bounds.safe=0.5")
LAGRANGIAN = ("feedback.combine=lagrangian", *BOUND)


def load(*overrides):
    return load_config(None, list(overrides), base=BASE)


def refusal(*overrides):
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_with_all_it_needs_is_accepted(kind):
    assert load(f"feedback.rewards.r={KINDS[kind]}").feedback.rewards["r"].kind == kind


def test_a_judge_may_be_named_setting_by_setting():
    config = load("feedback.rewards.r.kind=ensemble", "feedback.rewards.r.paths=[p, q]")
    assert config.feedback.rewards["r"].paths == ("p", "q")


@pytest.mark.parametrize(
    ("reward", "line"),
    [
        ("{kind: implicit, path: p, beta: 1}", "r.reference is required for kind implicit"),
        ("{kind: implicit, path: p, reference: q}", "r.beta is required for kind implicit"),
        ("{kind: classifier, path: p}", "r.positive is required for kind classifier"),
        ("{kind: ensemble}", "r.paths is required for kind ensemble"),
        ("{kind: ensemble, paths: [p]}", "r.paths has one folder"),
        ("{kind: ensemble, path: p, paths: [p, q]}", "r.path=p has no meaning for kind ensemble"),
        ("{kind: ensemble, paths: [p, q], reduce: penalised}", "r.penalty is required for reduce"),
        ("{kind: ensemble, paths: [p, q], penalty: 1}", "r.penalty=1 has no meaning for reduce="),
        ("{kind: llm_judge, path: p}", "r.prompt_file is required for kind llm_judge"),
        ("{kind: model, path: p, positive: 0}", "r.positive=0 has no meaning for kind model"),
        ("{kind: gold, threshold: 1}", "r.threshold=1.0 has no meaning for kind gold"),
        ("{kind: ranker, path: p, verdict: text}", "r.verdict=text has no meaning for kind ranker"),
    ],
)
def test_what_a_kind_lacks_or_does_not_know_is_refused_by_name(reward, line):
    assert refusal(f"feedback.rewards.r={reward}").startswith(f"feedback.rewards.{line}")


@pytest.mark.parametrize("kind", ["ranker", "llm_judge", "classifier"])
def test_kinds_that_need_whole_groups_or_one_process_refuse_several_workers(kind):
    message = refusal(f"feedback.rewards.r={KINDS[kind]}", "cluster.reward.num_workers=2")
    assert message.startswith("cluster.reward.num_workers=2")
    assert message.endswith("set it to 1")


@pytest.mark.parametrize("kind", ["implicit", "ensemble"])
def test_kinds_of_frozen_models_may_have_several_workers(kind):
    load(f"feedback.rewards.r={KINDS[kind]}", "cluster.reward.num_workers=2")


def test_judges_of_pairs_need_two_replies_to_a_prompt():
    ranker = f"feedback.rewards.r={KINDS['ranker']}"
    alone = ("algorithm.name=ppo", "data.samples_per_prompt=1")
    assert "set data.samples_per_prompt to 2 or more, not 1" in refusal(ranker, *alone)
    config = load(ranker, "algorithm.name=ppo")
    assert num_replies(config) == 2


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["feedback.combine=minimum"], "feedback.combine=minimum chooses between rewards"),
        (
            ["feedback.combine=group_minimum", "feedback.rewards.x={kind: gold, weight: 0}"],
            "feedback.combine=group_minimum chooses between rewards",
        ),
        (BOUND, "feedback.bounds has no meaning for feedback.combine=weighted"),
        (["feedback.one_shot=true"], "feedback.one_shot has no meaning for feedback.combine="),
        (["feedback.combine=lagrangian"], "feedback.combine=lagrangian needs feedback.bounds"),
        (
            ["feedback.combine=lagrangian", "feedback.bounds.safety=1"],
            "feedback.bounds.safety names no reward: there are gold",
        ),
        (
            ["feedback.combine=lagrangian", "feedback.bounds.gold=1"],
            "feedback.bounds bounds every reward",
        ),
        (
            [*LAGRANGIAN, "feedback.rewards.safe.weight=2", "feedback.one_shot=true"],
            "feedback.rewards.safe.weight=2, but a reward with a bound",
        ),
        (LAGRANGIAN, "feedback.combine=lagrangian takes either feedback.multipliers or"),
        (
            [*LAGRANGIAN, "feedback.one_shot=true", "feedback.multipliers.safe=1"],
            "feedback.combine=lagrangian takes either feedback.multipliers or",
        ),
        (
            [*LAGRANGIAN, "feedback.multipliers.gold=1"],
            "feedback.bounds and feedback.multipliers differ in gold",
        ),
        (
            [*LAGRANGIAN, "feedback.one_shot=true", "model.reference=other"],
            "feedback.one_shot solves multipliers on samples of the reference",
        ),
        (
            [*LAGRANGIAN, "feedback.one_shot=true", "algorithm.kl.coef=0"],
            "feedback.one_shot needs a leash to the reference",
        ),
        (
            [*LAGRANGIAN, "feedback.one_shot=true", "algorithm.name=ppo",
             "data.samples_per_prompt=1"],
            "feedback.one_shot compares replies to one prompt",
        ),
    ],
)  # fmt: skip
def test_combinations_that_say_too_little_or_too_much_are_refused(overrides, line):
    assert refusal(*overrides).startswith(line)


def test_constraints_are_accepted_with_one_source_of_multipliers():
    assert load(*LAGRANGIAN, "feedback.multipliers.safe=2").feedback.multipliers == {"safe": 2.0}
    assert load(*LAGRANGIAN, "feedback.one_shot=true").feedback.one_shot


def test_the_plan_counts_every_model_of_a_judge():
    model = {
        "model_type": "qwen3", "hidden_size": 100, "intermediate_size": 300,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 50, "vocab_size": 1000, "tie_word_embeddings": True,
    }  # fmt: skip

    def parts(kind):
        config = load(f"feedback.rewards.r={kind}", "cluster.rollout.kv_cache_gib=3")
        roles = derive(config, model, None).roles
        return {p.name: p.gib for p in next(r for r in roles if r.name == "reward r").parts}

    one = parts("{kind: model, path: p}")
    assert parts(KINDS["classifier"])["weights"] == one["weights"]
    assert parts(KINDS["ensemble"])["weights"] == 2 * one["weights"]
    implicit = parts(KINDS["implicit"])
    assert implicit["weights"] == 2 * one["weights"]
    assert implicit["logits"] > 0
    asked = parts(KINDS["llm_judge"])
    assert asked["weights"] == one["weights"]
    assert asked["KV cache"] == 3
    assert "logits" not in one


def test_a_gpu_run_gives_every_judge_with_weights_a_gpu():
    cuda = (
        "cluster.device=cuda", "cluster.learner.gpus_per_worker=1",
        "cluster.rollout.gpus_per_engine=1", "cluster.reference.gpus_per_worker=0.5",
    )  # fmt: skip
    load(*cuda)
    for kind in KINDS.values():
        assert "cluster.reward.gpus_per_worker=0" in refusal(*cuda, f"feedback.rewards.r={kind}")
