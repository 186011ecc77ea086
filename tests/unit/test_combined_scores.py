"""Named rewards as one score: what decides, over all ranks, and on sampled replies only."""

import pytest
import torch

from actors.scores import combine, solve_multipliers
from configs.schema import FeedbackConfig
from rl.feedback.dual import one_shot_multipliers


def feedback(**settings):
    rewards = {
        "a": {"kind": "gold"},
        "b": {"kind": "gold", "weight": 2.0},
        "only_told": {"kind": "gold", "weight": 0.0},
    }
    return FeedbackConfig.model_validate({"rewards": rewards, **settings})


REWARDS = {
    "a": torch.tensor([1.0, 2.0, 3.0, -50.0]),
    "b": torch.tensor([1.0, 0.5, 2.0, 1.0]),
    "only_told": torch.tensor([-9.0, -9.0, -9.0, -9.0]),
    "a/part": torch.tensor([-99.0, -99.0, -99.0, -99.0]),
}
SAMPLED = torch.tensor([True, True, True, False])


def combined(settings, *, rewards=REWARDS, reduce=lambda sums: sums, multipliers=None):
    scores, told = combine(rewards, settings, SAMPLED, reduce, multipliers or settings.multipliers)
    return scores.tolist(), told


def test_weighted_is_the_sum():
    assert combined(feedback()) == ([3.0, 3.0, 7.0, -48.0], {})


def test_minimum_takes_each_replys_lowest_and_tells_how_often_each_decides():
    scores, told = combined(feedback(combine="minimum"))
    assert scores == [1.0, 1.0, 3.0, -50.0]  # of a and 2 b; what is only told decides nothing
    assert told == {
        "feedback/decides/a": pytest.approx(2 / 3),  # the fourth reply was not sampled
        "feedback/decides/b": pytest.approx(1 / 3),
    }


def test_group_minimum_takes_the_reward_with_the_lowest_mean_of_sampled_replies():
    scores, told = combined(feedback(combine="group_minimum"))
    # means of the three sampled replies: a 2, 2 b 7 / 3; with the fourth it would be a all the more
    assert scores == REWARDS["a"].tolist()
    assert told == {"feedback/decides/a": 1.0, "feedback/decides/b": 0.0}
    higher = REWARDS | {"a": torch.tensor([2.0, 3.0, 4.0, -50.0])}
    scores, told = combined(feedback(combine="group_minimum"), rewards=higher)
    assert scores == [2.0, 1.0, 4.0, 2.0]
    assert told == {"feedback/decides/a": 0.0, "feedback/decides/b": 1.0}


def test_group_minimum_is_decided_over_all_ranks():
    # On another rank, three more replies have a mean of 8 by a and of 0 by b.
    others = torch.tensor([[3.0, 24.0, 0.0], [3.0, 0.0, 0.0]])
    settings = feedback(combine="group_minimum")
    scores, _ = combined(settings, reduce=lambda sums: sums + others)
    assert scores == [2.0, 1.0, 4.0, 2.0]


def constrained(**settings):
    rewards = {"good": {"kind": "gold", "weight": 2.0}, "safe": {"kind": "gold"}}
    given = {"rewards": rewards, "combine": "lagrangian", "bounds": {"safe": 0.5}, **settings}
    return FeedbackConfig.model_validate(given)


def test_lagrangian_pulls_constraints_towards_their_bounds():
    rewards = {
        "good": torch.tensor([1.0, 2.0, 3.0, 0.0]),
        "safe": torch.tensor([1.0, 0.0, 0.2, 9.0]),
        "safe/part": torch.zeros(4),
    }
    scores, told = combined(constrained(multipliers={"safe": 4.0}), rewards=rewards)
    assert scores == pytest.approx([2 + 4 * 0.5, 4 - 4 * 0.5, 6 - 4 * 0.3, 4 * 8.5])
    assert told == {
        "feedback/multiplier/safe": 4.0,
        "feedback/slack/safe": pytest.approx(0.4 - 0.5),
    }


def test_multipliers_are_solved_on_whole_groups():
    good = torch.tensor([[0.0, 1.0], [0.2, 0.9], [0.0, 0.0]])
    safe = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.5, 0.5]])
    groups = [{"good": good[k], "safe": safe[k]} for k in range(3)]
    short = {"good": torch.tensor([7.0]), "safe": torch.tensor([-7.0])}
    settings = constrained(one_shot=True)
    found = solve_multipliers([groups[0], short, *groups[1:]], settings, beta=0.5)
    assert found == one_shot_multipliers(2 * good, {"safe": safe}, {"safe": 0.5}, beta=0.5)
    assert found["safe"] > 0.1
