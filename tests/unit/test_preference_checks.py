"""Inconsistent tuples are refused by name (T5.4), each with its remedy."""

import pytest

from configs.load import ConfigError, load_config

MINIMAL = [
    "model.path=m", "data.train=d.jsonl", "cluster.run_dir=r", "algorithm.num_steps=6",
    "data.sampling.max_new_tokens=16", "data.prompts_per_step=8",
]  # fmt: skip
JUDGE = "feedback.rewards.g.kind=gold"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["algorithm.name=hinge", "data.pairing=single"], "compares pairs: use given, best_worst"),
        (["algorithm.name=kto", "data.pairing=given"], "compares single replies: use single"),
        (["algorithm.name=dpo", "algorithm.loss.alpha=0.1"], "loss.alpha has no meaning"),
        (["algorithm.name=dpo", "algorithm.loss.name=kto"], "is not the loss of .*name=dpo"),
        (["algorithm.name=simpo", "algorithm.kl.coef=0.1"], "kl.coef=0.1 has no place"),
        (["algorithm.name=dpo", "algorithm.advantage=rloo"], "advantage=rloo has no place"),
        (["algorithm.name=dpo", "model.reference_update=none"], "measures against a reference"),
        (["algorithm.name=tr_dpo", "model.reference_interval=null"], "needs model.reference_int"),
        (["algorithm.name=online_dpo", JUDGE, "data.samples_per_prompt=1"], "one reply to compare"),
        (["algorithm.name=selm", JUDGE], "needs algorithm.iteration_steps"),
        (
            ["algorithm.name=selm", JUDGE, "algorithm.iteration_steps=4"],
            "iteration_steps=4 does not divide",
        ),
        (
            ["algorithm.name=selm", JUDGE, "algorithm.iteration_steps=3"],
            "checkpoint.interval=20 would resume inside",
        ),
        (
            ["algorithm.name=online_dpo", "feedback.rewards.label.kind=label"],
            "kind=label knows stored replies alone",
        ),
        (
            [
                "algorithm.name=rebel",
                JUDGE,
                "algorithm.max_staleness=1",
            ],
            "measured against a reference",
        ),
        (
            ["algorithm.name=online_dpo", JUDGE, "feedback.label_budget=50"],
            "pays for 3 steps of 16 judged replies, not for algorithm.num_steps=6: lower that, "
            "or raise the budget to 96",
        ),
        (["algorithm.name=dpo", "feedback.label_budget=100"], "counts fresh replies"),
        (["algorithm.name=dpo", "feedback.selection.by=random"], "chooses among fresh replies"),
        (
            ["algorithm.name=ppo", JUDGE, "feedback.selection.by=certainty"],
            "compares the replies to one prompt",
        ),
        (["algorithm.name=online_dpo", JUDGE, "feedback.mixture.annotator=who"], "no meaning for"),
        (["algorithm.name=ulma", "algorithm.loss.c=estimated"], "has none: use data.source=policy"),
        (
            ["algorithm.name=ulma", "algorithm.loss.centred=true"],
            "has none: use data.source=policy",
        ),
        (
            [
                "algorithm.name=ulma",
                "data.source=policy+reference",
                "algorithm.loss.centred=true",
                "feedback.rewards.label=null",
                JUDGE,
            ],
            "centred=true makes scores that are no labels",
        ),
        (
            [
                "algorithm.name=online_dpo",
                JUDGE,
                "feedback.selection.by=random",
                "data.sliced=true",
                "algorithm.iteration_steps=3",
                "cluster.checkpoint.interval=3",
            ],
            "feedback.selection chooses among more",
        ),
        (
            [
                "algorithm.name=dapo",
                JUDGE,
                "data.samples_per_prompt=2",
                "feedback.label_budget=500",
                "algorithm.max_staleness=1",
            ],
            "cannot be shared by steps that resample",
        ),
        (["algorithm.name=dpo", "feedback.curate_by=rm"], "is no reward that judges replies"),
        (
            ["algorithm.name=kto", "feedback.curate_by=g", JUDGE, "feedback.rewards.g.weight=0"],
            "chooses among pairs",
        ),
        (["algorithm.name=mrpo"], "extra_references has 0: give one folder, or use uniform"),
        (
            ["algorithm.name=kto", "model.extra_references=[a]", "model.reference_clip=0.1"],
            "data.pairing=single makes none",
        ),
        (["algorithm.name=simpo", "model.extra_references=[a]"], "mixed with a reference"),
        (
            [
                "algorithm.name=rloo",
                JUDGE,
                "data.samples_per_prompt=4",
                "model.extra_references=[a]",
            ],
            "extra_references has no meaning for algorithm.name=rloo",
        ),
        (["algorithm.name=kto", "data.prompts_per_step=3"], "leaves KTO no other prompts"),
        (
            ["algorithm.name=online_dpo", JUDGE, "data.sampling.greedy=true"],
            "gives the same reply 2 times",
        ),
        (
            ["algorithm.name=rloo", JUDGE, "data.samples_per_prompt=4", "data.source=stored"],
            "data.source=stored has no meaning for algorithm.name=rloo",
        ),
        (["algorithm.name=ppo", JUDGE, "data.pairing=given"], "data.pairing=given has no meaning"),
    ],
)
def test_an_inconsistent_tuple_is_refused_in_one_line(overrides, words):
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(None, [*MINIMAL, *overrides])
    assert "\n" not in str(caught.value)


def test_any_field_of_a_row_can_be_overridden():
    config = load_config(
        None,
        [
            *MINIMAL, JUDGE, "algorithm.name=online_rpo", "algorithm.loss.distance=sq",
            "data.pairing=all_pairs", "model.reference_update=reset", "algorithm.iteration_steps=2",
        ],
    )  # fmt: skip
    assert config.algorithm.loss.distance == "sq"
    assert config.data.pairing == "all_pairs"
