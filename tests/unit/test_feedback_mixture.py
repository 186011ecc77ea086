import math
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import logsigmoid

from rl.feedback.mixture import assign, fill_empty, hard_em


class Annotators:
    """Made-up people who judge pairs by one of two opposite linear tastes, with some noise.

    A model is a weight vector with a small ridge, fitted by Newton's method to its optimum.
    """

    def __init__(self, tastes, num_pairs, seed):
        random = torch.Generator().manual_seed(seed)
        shape = (len(tastes), num_pairs, 4)
        pairs = torch.randn(shape, generator=random, dtype=torch.float64)
        margin = 3 * (pairs[..., 0] - pairs[..., 1]) * torch.tensor(tastes)[:, None]
        prefers_first = torch.rand(margin.shape, generator=random).double() < torch.sigmoid(margin)
        self.pairs = pairs * (2 * prefers_first.double() - 1)[..., None]  # (U, N, 4) chosen less l
        self.num_models = 2

    def fit(self, assignment):
        models = []
        for model in range(self.num_models):
            data = self.pairs[assignment == model].reshape(-1, 4)
            assert len(data), "a model without annotators"
            weights = torch.zeros(4, dtype=torch.float64)
            for _ in range(25):
                p = torch.sigmoid(-(data @ weights))
                gradient = data.T @ p - 1e-6 * weights
                hessian = (data.T * (p * (1 - p))) @ data + 1e-6 * torch.eye(4).double()
                weights = weights + torch.linalg.solve(hessian, gradient)
            models.append(weights)
        return torch.stack(models)  # (M, 4)

    def log_likelihood(self, models):
        return logsigmoid(self.pairs @ models.T).sum(1).T  # (M, U)


@pytest.mark.parametrize("seed", range(6))
def test_two_opposite_tastes_are_told_apart_up_to_names(seed):
    tastes = [1, 1, 1, -1, 1, -1, -1, 1, 1, -1, 1, 1]
    people = Annotators(tastes, num_pairs=30, seed=100 + seed)
    mixture = hard_em(people.fit, people.log_likelihood, 2, len(tastes), seed=seed)
    assert mixture.converged
    belongs = [model == mixture.assignment[0] for model in mixture.assignment]
    assert belongs == [taste == 1 for taste in tastes]
    # And the models are the tastes: opposite weights on the two features that count.
    first, second = mixture.models
    assert float(torch.cosine_similarity(first, second, 0)) < -0.9


@pytest.mark.parametrize("seed", range(6))
def test_the_likelihood_never_falls_even_where_a_model_has_to_be_filled(seed):
    people = Annotators([1] * 7, num_pairs=20, seed=seed)
    people.num_models = 3
    mixture = hard_em(people.fit, people.log_likelihood, 3, 7, seed=seed, max_rounds=20)
    history = mixture.log_likelihoods
    assert len(history) > 1
    assert all(b >= a - 1e-9 for a, b in pairwise(history))
    own = people.log_likelihood(mixture.models).gather(0, mixture.assignment[None])
    assert history[-1] == pytest.approx(float(own.sum()))
    assert sorted(set(mixture.assignment.tolist())) == [0, 1, 2]


def test_a_run_repeats_under_its_seed_and_says_when_its_rounds_ran_out():
    people = Annotators([1, -1] * 4, num_pairs=20, seed=3)
    starts = []

    def fit(assignment):
        starts.append(assignment.tolist())
        return people.fit(assignment)

    one, two = (
        hard_em(fit, people.log_likelihood, 2, 8, seed=seed, max_rounds=1) for seed in (0, 0)
    )
    assert starts[0] == starts[1] == one.assignment.tolist() == two.assignment.tolist()
    assert sorted(starts[0]) == [0] * 4 + [1] * 4
    assert not one.converged
    likelihoods = people.log_likelihood(one.models)
    own = sum(float(likelihoods[model, who]) for who, model in enumerate(one.assignment))
    assert one.log_likelihoods == (pytest.approx(own),)
    hard_em(fit, people.log_likelihood, 2, 8, seed=1, max_rounds=1)
    assert starts[2] != starts[0]


def test_each_annotator_joins_the_likeliest_model_and_moves_only_for_enough():
    likelihoods = torch.tensor([[-1.0, -5.0, -2.0], [-3.0, -4.0, -2.0]])
    assert assign(likelihoods).tolist() == [0, 1, 0]
    current = torch.tensor([1, 0, 1])
    assert assign(likelihoods, current).tolist() == [0, 1, 1]  # a tie is no reason to move
    assert assign(likelihoods, current, min_gain=1.0).tolist() == [0, 0, 1]


def test_an_empty_model_takes_the_worst_served_who_does_not_stand_alone():
    likelihoods = torch.tensor([[-1.0, -2.0, -9.0], [-3.0, -4.0, -8.0], [-6.0, -6.0, -9.0]])
    assert fill_empty(torch.tensor([0, 0, 1]), likelihoods).tolist() == [0, 2, 1]
    assert fill_empty(torch.tensor([0, 0, 0]), likelihoods).tolist() == [0, 2, 1]
    full = torch.tensor([2, 0, 1])
    assert fill_empty(full, likelihoods).tolist() == [2, 0, 1]


def test_no_fit_ever_sees_a_model_without_annotators():
    seen = []
    everyone_likes_the_first = torch.tensor([[-1.0, -2.0, -3.0], [-5.0, -5.0, -5.0]])
    mixture = hard_em(
        lambda assignment: seen.append(assignment.tolist()),
        lambda _: everyone_likes_the_first,
        2,
        3,
        seed=0,
    )
    assert all({0, 1} == set(assignment) for assignment in seen)
    assert mixture.assignment.tolist() == [0, 0, 1]
    assert mixture.converged


def test_likelihoods_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="model 1 gives annotator 0"):
        assign(torch.tensor([[0.0, 0.0], [math.nan, 0.0]]))
    with pytest.raises(ValueError, match=r"give \(M, U\)"):
        assign(torch.zeros(3))


@pytest.mark.parametrize(("models", "people", "rounds"), [(3, 2, 5), (0, 2, 5), (2, 2, 0)])
def test_more_models_than_annotators_or_no_round_are_refused(models, people, rounds):
    with pytest.raises(ValueError, match="give every model an annotator"):
        hard_em(lambda a: a, lambda m: m, models, people, seed=0, max_rounds=rounds)
