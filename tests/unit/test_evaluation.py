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
