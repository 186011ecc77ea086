"""Held-out replies: what training would have scored them, and how sure a difference is."""

import pytest

from cluster.evaluation import JudgedReply, means, standard_errors, with_total
from configs.schema import FeedbackConfig


def reply(finish_reason="stop", **rewards):
    return JudgedReply(
        prompt="p", reply="r", num_tokens=1, finish_reason=finish_reason, rewards=rewards
    )


def feedback(**settings):
    rewards = {"rm": {"kind": "gold", "weight": 2.0}, "gold": {"kind": "gold", "weight": 0.0}}
    return FeedbackConfig.model_validate({"rewards": rewards, **settings})


def test_the_total_weighs_rewards_and_fines_replies_without_an_end():
    replies = [reply(rm=1.0, gold=0.5), reply("length", rm=3.0, gold=0.1)]
    totals = [r.rewards["total"] for r in with_total(replies, feedback(missing_eos_penalty=0.5))]
    assert totals == [2.0, 5.5]
    clipped = with_total(replies, feedback(clip=4.0))
    assert means(clipped)["total"] == 3.0
    assert means(clipped)["rm"] == 2.0


def test_the_standard_error_is_of_paired_differences():
    before = [reply(rm=0.0), reply(rm=10.0), reply(rm=20.0)]
    after = [reply(rm=1.0), reply(rm=13.0), reply(rm=22.0)]
    # differences 1, 3, 2: unbiased standard deviation 1, over the root of 3
    assert standard_errors(before, after)["rm"] == pytest.approx(1 / 3**0.5)


TWO = {"a": {"kind": "gold"}, "b": {"kind": "gold", "weight": 2.0}}


def totals(replies, **settings):
    feedback = FeedbackConfig.model_validate({"rewards": TWO, **settings})
    return [r.rewards.get("total") for r in with_total(replies, feedback)]


def test_the_total_follows_how_training_combines_rewards():
    replies = [reply(a=1.0, b=2.0), reply(a=3.0, b=0.5)]
    assert totals(replies) == [5.0, 4.0]
    assert totals(replies, combine="minimum") == [1.0, 1.0]
    # means: a 2, 2 b 2.5
    assert totals(replies, combine="group_minimum") == [1.0, 3.0]
    bounded = {"combine": "lagrangian", "bounds": {"a": 2.0}, "multipliers": {"a": 3.0}}
    assert totals(replies, **bounded) == [4.0 - 3.0, 1.0 + 3.0]


def test_there_is_no_total_where_only_training_knows_it():
    replies = [reply(a=1.0, b=2.0)]
    solved = {"combine": "lagrangian", "bounds": {"a": 2.0}, "one_shot": True}
    assert totals(replies, **solved) == [None]
    ranked = TWO | {"r": {"kind": "ranker", "path": "p"}}
    assert totals(replies, rewards=ranked) == [None]
    assert totals(replies, rewards=ranked | {"r": ranked["r"] | {"weight": 0}}) == [5.0]
