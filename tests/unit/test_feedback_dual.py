"""Every problem here is a finite set of actions, all equally likely under the reference."""

import math
from itertools import product

import pytest
import torch

from rl.feedback.combine import lagrangian
from rl.feedback.dual import DualProblem, one_shot_multipliers

REWARD = torch.tensor([[2.0, 1.0, 0.0, 1.5]])
SAFE = torch.tensor([[-1.0, 0.5, 1.0, -0.2]])
SHORT = torch.tensor([[0.0, -1.0, 1.0, 0.6]])


def aligned(rewards, constraints, multipliers, beta):
    """(P, N): the policy that is optimal for the Lagrangian, pi_ref exp(score / beta) / Z."""
    flat = {name: values.double().flatten() for name, values in constraints.items()}
    scores = lagrangian(
        rewards.double().flatten(), flat, multipliers, dict.fromkeys(multipliers, 0.0)
    )
    return torch.softmax(scores.view(rewards.shape) / beta, -1)


def mean(values, policy):
    return float((values * policy).sum(-1).mean())


def test_two_actions_give_the_multiplier_worked_out_by_hand():
    # E[g] = 1/2 on g = (1, -1) needs pi = (3/4, 1/4): exp((-1 + 2 lambda) / beta) = 3.
    found = one_shot_multipliers(
        torch.tensor([[0.0, 1.0]]), {"safe": torch.tensor([[1.0, -1.0]])}, {"safe": 0.5}, beta=0.1
    )
    assert found["safe"] == pytest.approx((1 + 0.1 * math.log(3)) / 2, abs=1e-5)


def test_the_aligned_policy_is_the_best_of_all_that_meet_the_bound():
    beta, bound, parts = 0.5, 0.3, 60
    found = one_shot_multipliers(REWARD, {"safe": SAFE}, {"safe": bound}, beta=beta)
    policy = aligned(REWARD, {"safe": SAFE}, found, beta)
    assert found["safe"] > 0
    assert mean(SAFE, policy) == pytest.approx(bound, abs=1e-5)

    def objective(policies):
        kl = torch.special.xlogy(policies, policies * 4).sum(-1)
        return (policies * REWARD[0]).sum(-1) - beta * kl

    counts = [c for c in product(range(parts + 1), repeat=3) if sum(c) <= parts]
    grid = torch.tensor([[*c, parts - sum(c)] for c in counts], dtype=torch.float64) / parts
    feasible = grid[(grid * SAFE[0]).sum(-1) >= bound]
    best = float(objective(feasible).max())
    # No grid point beats it, and the best one comes as close as the grid is fine.
    assert best <= float(objective(policy)[0]) + 1e-6
    assert best == pytest.approx(float(objective(policy)[0]), abs=0.01)


def test_two_constraints_meet_the_minimum_of_a_fine_grid_and_the_dual_is_convex_along_it():
    beta, bounds = 0.4, {"safe": 0.3, "short": 0.2}
    constraints = {"safe": SAFE, "short": SHORT}
    found = one_shot_multipliers(REWARD, constraints, bounds, beta=beta)
    slacks = torch.stack([SAFE - 0.3, SHORT - 0.2]).double()
    problem = DualProblem(rewards=REWARD.double(), slacks=slacks, beta=beta)
    line = torch.arange(0, 3, 0.04, dtype=torch.float64)
    values = [[problem.value(torch.stack([a, b])) for b in line] for a in line]
    values = torch.tensor(values, dtype=torch.float64)
    row, column = divmod(int(values.argmin()), len(line))
    assert found["safe"] == pytest.approx(float(line[row]), abs=0.04)
    assert found["short"] == pytest.approx(float(line[column]), abs=0.04)
    assert problem.value(torch.tensor(list(found.values())).double()) <= float(values.min())
    for grid in (values, values.T):
        assert bool((grid[2:] - 2 * grid[1:-1] + grid[:-2] > -1e-12).all())


def test_the_dual_of_equal_scores_is_that_score():
    rewards, slacks = torch.full((2, 5), 3.0).double(), torch.full((1, 2, 5), -0.5).double()
    problem = DualProblem(rewards=rewards, slacks=slacks, beta=0.3)
    assert problem.value(torch.tensor([4.0]).double()) == pytest.approx(3 - 4 * 0.5)


def test_derivatives_agree_with_finite_differences():
    torch.manual_seed(0)
    problem = DualProblem(
        rewards=torch.randn(3, 5, dtype=torch.float64),
        slacks=torch.randn(2, 3, 5, dtype=torch.float64),
        beta=0.7,
    )
    point, step = torch.tensor([0.4, 1.1], dtype=torch.float64), 1e-5
    gradient, hessian = problem.derivatives(point)
    for axis in range(2):
        shift = torch.zeros(2, dtype=torch.float64)
        shift[axis] = step
        slope = (problem.value(point + shift) - problem.value(point - shift)) / (2 * step)
        assert float(gradient[axis]) == pytest.approx(slope, abs=1e-8)
        ahead, behind = (problem.derivatives(point + sign * shift)[0] for sign in (1, -1))
        torch.testing.assert_close(hessian[axis], (ahead - behind) / (2 * step))


def test_a_slack_constraint_costs_nothing_beside_a_binding_one():
    constraints = {"safe": SAFE, "short": SHORT}
    found = one_shot_multipliers(REWARD, constraints, {"safe": 0.3, "short": -0.9}, beta=0.5)
    alone = one_shot_multipliers(REWARD, {"safe": SAFE}, {"safe": 0.3}, beta=0.5)
    assert found["short"] == 0
    assert found["safe"] == pytest.approx(alone["safe"], abs=1e-5)
    assert one_shot_multipliers(REWARD, {"safe": SAFE}, {"safe": -1.0}, beta=0.5) == {"safe": 0}


def test_the_bound_holds_on_average_over_prompts():
    torch.manual_seed(1)
    rewards, safe = torch.randn(7, 16), torch.randn(7, 16)
    found = one_shot_multipliers(rewards, {"safe": safe}, {"safe": 0.8}, beta=0.1)
    policy = aligned(rewards, {"safe": safe}, found, 0.1)
    assert mean(safe, policy) == pytest.approx(0.8, abs=1e-4)
    assert float((safe * policy).sum(-1).std()) > 0.1


@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
def test_random_problems_meet_every_bound_and_pay_only_for_those_that_bind(beta):
    for seed in range(10):
        torch.manual_seed(seed)
        rewards, slacks = 10 * torch.randn(4, 8), torch.randn(3, 4, 8)
        units = torch.tensor([1, 1e3, 1e-3])[:, None, None]
        constraints = dict(zip("abc", slacks * units, strict=True))
        found = one_shot_multipliers(rewards, constraints, dict.fromkeys("abc", 0.0), beta=beta)
        policy = aligned(rewards, constraints, found, beta)
        for name, values in constraints.items():
            excess = mean(values, policy) / float(values.abs().max())
            assert excess >= -2e-6
            assert found[name] == 0 or excess < 2e-6, seed


def test_the_multiplier_follows_the_unit_of_its_constraint():
    plain = one_shot_multipliers(REWARD, {"safe": SAFE}, {"safe": 0.3}, beta=0.5)
    cents = one_shot_multipliers(REWARD, {"safe": 100 * SAFE}, {"safe": 30.0}, beta=0.5)
    assert 100 * cents["safe"] == pytest.approx(plain["safe"], rel=1e-4)


def test_the_same_constraint_twice_is_met():
    found = one_shot_multipliers(REWARD, {"a": SAFE, "b": SAFE}, dict.fromkeys("ab", 0.3), beta=0.5)
    alone = one_shot_multipliers(REWARD, {"a": SAFE}, {"a": 0.3}, beta=0.5)
    assert found["a"] + found["b"] == pytest.approx(alone["a"], abs=1e-4)


def test_a_bound_out_of_reach_is_refused_by_name_alone_or_together():
    with pytest.raises(ValueError, match=r"safe >= 2 is out of reach.*average 1;"):
        one_shot_multipliers(REWARD, {"safe": SAFE}, {"safe": 2.0}, beta=0.1)
    opposed = {"safe": SAFE, "bold": -SAFE}
    with pytest.raises(ValueError, match="no policy on these samples meets all bounds"):
        one_shot_multipliers(REWARD, opposed, {"safe": 0.5, "bold": 0.5}, beta=0.1)
    with pytest.raises(ValueError, match="no multipliers found in 1 rounds"):
        one_shot_multipliers(REWARD, {"safe": SAFE}, {"safe": 0.3}, beta=0.1, max_rounds=1)


@pytest.mark.parametrize(
    ("constraints", "bounds", "beta", "message"),
    [
        ({"safe": SAFE}, {"short": 0.0}, 0.1, "give each one bound"),
        ({}, {}, 0.1, "give each one bound"),
        ({"safe": SAFE[:, :2]}, {"safe": 0.0}, 0.1, "give .prompts, replies. for all"),
        ({"safe": SAFE}, {"safe": 0.0}, 0.0, "beta is 0"),
        ({"safe": SAFE * math.nan}, {"safe": 0.0}, 0.1, "not finite"),
    ],
)
def test_a_dual_that_makes_no_sense_is_refused(constraints, bounds, beta, message):
    with pytest.raises(ValueError, match=message):
        one_shot_multipliers(REWARD, constraints, bounds, beta=beta)
