import math

import pytest
import torch

from rl.feedback.combine import lagrangian, minimum_per_group, minimum_per_sample
from rl.feedback.ensemble import disagreement, mean_score, minimum_score, penalised_score


def t(*values):
    return torch.tensor(values)


TWO_GROUPS = {"old": t(1.0, 5.0, 0.0), "young": t(2.0, 1.0, 2.0), "young/part": t(-9.0, -9.0, -9.0)}


def test_the_minimum_per_sample_takes_each_reply_s_harshest_judge():
    assert minimum_per_sample(TWO_GROUPS).tolist() == [1, 1, 0]


def test_the_minimum_per_group_takes_all_rewards_of_the_group_with_the_lowest_mean():
    assert minimum_per_group(TWO_GROUPS).tolist() == [2, 1, 2]  # means 2 and 5/3
    assert minimum_per_group(TWO_GROUPS, {"old": 0.1, "young": 0.2}).tolist() == [1, 5, 0]


def test_the_per_sample_minimum_never_exceeds_the_minimum_of_means():
    torch.manual_seed(0)
    for _ in range(20):
        rewards = dict(zip("abc", torch.randn(3, 16), strict=True))
        by_group = minimum_per_group(rewards)
        assert by_group.mean() == torch.stack(list(rewards.values())).mean(-1).min()
        assert bool((minimum_per_sample(rewards) <= by_group).all())


def test_a_minimum_of_nothing_or_without_a_mean_is_refused():
    with pytest.raises(ValueError, match="no reward to combine"):
        minimum_per_sample({"gold/polite": t(1.0)})
    with pytest.raises(ValueError, match=r"means: none for \['young'\]"):
        minimum_per_group(TWO_GROUPS, {"old": 1.0})


def test_the_lagrangian_adds_each_slack_times_its_multiplier():
    constraints = {"safe": t(1.0, -1.0), "short": t(0.0, 4.0), "short/words": t(7.0, 7.0)}
    scores = lagrangian(
        t(1.0, 2.0), constraints, {"safe": 2.0, "short": 0.5}, {"safe": 0.5, "short": 2.0}
    )
    assert scores.tolist() == [1, 0]  # 1 + 2 * 0.5 + 0.5 * -2; 2 + 2 * -1.5 + 0.5 * 2
    assert lagrangian(t(1.0), {}, {}, {}).tolist() == [1]


@pytest.mark.parametrize(
    ("multipliers", "bounds", "message"),
    [
        ({"safe": 1.0}, {}, "one multiplier and one bound"),
        ({"safe": 1.0, "short": 1.0}, {"safe": 1.0, "short": 1.0}, r"constraints \['safe'\]"),
        ({"safe": -0.1}, {"safe": 1.0}, r"\['safe'\] below 0"),
        ({"safe": math.nan}, {"safe": 1.0}, r"\['safe'\] below 0"),
    ],
)
def test_multipliers_that_do_not_fit_the_constraints_are_refused(multipliers, bounds, message):
    with pytest.raises(ValueError, match=message):
        lagrangian(t(0.0), {"safe": t(1.0)}, multipliers, bounds)


JUDGES = torch.tensor([[1.0, 4.0], [3.0, 4.0]])  # two judges agree on the second reply only


def test_an_ensemble_gives_mean_minimum_and_mean_less_k_deviations():
    assert mean_score(JUDGES).tolist() == [2, 4]
    assert minimum_score(JUDGES).tolist() == [1, 4]
    assert disagreement(JUDGES).tolist() == [1, 0]
    assert penalised_score(JUDGES, 0.5).tolist() == [1.5, 4]
    assert penalised_score(JUDGES, 0).equal(mean_score(JUDGES))


def test_a_single_judge_agrees_with_itself_and_scaled_scores_keep_k():
    assert disagreement(t(3.0, -1.0)[None]).tolist() == [0, 0]
    scaled = penalised_score(10 * JUDGES, 2.0)
    torch.testing.assert_close(scaled, 10 * penalised_score(JUDGES, 2.0))


@pytest.mark.parametrize("scores", [torch.zeros(3), torch.zeros(0, 3), torch.zeros(1, 2, 3)])
def test_scores_that_are_no_matrix_of_judges_are_refused(scores):
    for combined in (mean_score, minimum_score, disagreement):
        with pytest.raises(ValueError, match=r"give \(judges, replies\)"):
            combined(scores)


def test_a_bonus_for_doubt_is_refused():
    with pytest.raises(ValueError, match=r"k is -1\.0"):
        penalised_score(JUDGES, -1.0)
