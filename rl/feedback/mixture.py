"""Hard EM: find groups of annotators who agree, and one reward model for each (MaxMin-RLHF).

Annotator h belongs to model argmax_m of the Bradley-Terry log-likelihood of their own pairs,
sum log sigmoid(r_m(x, y_w) - r_m(x, y_l)), in nats; every model is then fitted again to its own
annotators (arXiv 2402.08925). Shapes: M models, U annotators.

    assignment (U,) --fit--> models --log_likelihood--> (M, U) --assign--> assignment (U,)

The likelihood never falls while `fit` does not make a model worse for its own annotators.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

Models = TypeVar("Models")


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture(Generic[Models]):
    """What hard EM ended with: models, and whom they were fitted to."""

    models: Models
    assignment: Tensor
    """(U,) int64: the model of each annotator."""
    log_likelihoods: tuple[float, ...]
    """After the fit of each round, of all annotators under their own models, nats."""
    converged: bool
    """Nobody wanted to move; else the rounds ran out."""


def assign(log_likelihoods: Tensor, current: Tensor | None = None, min_gain: float = 0.0) -> Tensor:
    """(U,) int64: the best model of each annotator, from log-likelihoods (M, U); ties to the first.

    Given the `current` assignment (U,), an annotator moves only for a gain above `min_gain` nats:
    this damping ends the to and fro of annotators whom two models suit alike. Raises ValueError
    for anything but a matrix with a model, or for NaN.
    """
    if log_likelihoods.ndim != 2 or not len(log_likelihoods):
        raise ValueError(f"log-likelihoods have shape {tuple(log_likelihoods.shape)}; give (M, U)")
    if bool(log_likelihoods.isnan().any()):
        model, annotator = log_likelihoods.isnan().nonzero()[0].tolist()
        raise ValueError(f"model {model} gives annotator {annotator} no log-likelihood but NaN")
    best = log_likelihoods.argmax(0)
    if current is None:
        return best
    gain = log_likelihoods.amax(0) - log_likelihoods.gather(0, current[None]).squeeze(0)
    return torch.where(gain > min_gain, best, current)


def fill_empty(assignment: Tensor, log_likelihoods: Tensor) -> Tensor:
    """(U,) int64: `assignment` in which every model has an annotator, from log-likelihoods (M, U).

    An empty model takes whoever is served worst by their own model, of those who do not stand
    alone; by the sum over pairs, so rather somebody who gave many. Needs U >= M. Fitted anew it
    serves them no worse, so the likelihood still never falls.
    """
    assert assignment.numel() >= len(log_likelihoods), "more models than annotators"
    assignment = assignment.clone()
    for model in range(len(log_likelihoods)):
        sizes = torch.bincount(assignment, minlength=len(log_likelihoods))
        if sizes[model]:
            continue
        own = log_likelihoods.gather(0, assignment[None]).squeeze(0)  # (U,)
        own = own.masked_fill(sizes[assignment] == 1, float("inf"))
        assignment[own.argmin()] = model
    return assignment


def hard_em(
    fit: Callable[[Tensor], Models],
    log_likelihood: Callable[[Models], Tensor],
    num_models: int,
    num_annotators: int,
    seed: int,
    max_rounds: int = 10,
    min_gain: float = 0.0,
) -> Mixture[Models]:
    """Fit and assign in turn until nobody moves, at most `max_rounds` fits (the paper's code: 10).

    `fit` takes an assignment (U,) without empty models and returns the models; one that goes on
    from its last weights keeps them itself. `log_likelihood` gives (M, U). The start deals
    annotators to models in turn, in an order shuffled by `seed`; EM finds a local optimum, so
    compare the likelihood of a few seeds. Raises ValueError for fewer annotators than models.
    """
    if not 1 <= num_models <= num_annotators or max_rounds < 1:
        raise ValueError(
            f"{num_models} models for {num_annotators} annotators in {max_rounds} rounds; "
            "give every model an annotator and at least one round"
        )
    order = torch.randperm(num_annotators, generator=torch.Generator().manual_seed(seed))
    assignment = torch.empty_like(order)
    assignment[order] = torch.arange(num_annotators) % num_models
    history: list[float] = []
    while True:
        models = fit(assignment)
        likelihoods = log_likelihood(models)  # (M, U)
        history.append(float(likelihoods.gather(0, assignment[None]).sum()))
        wanted = fill_empty(assign(likelihoods, assignment, min_gain), likelihoods)
        converged = bool((wanted == assignment).all())
        if converged or len(history) == max_rounds:
            return Mixture(
                models=models,
                assignment=assignment,
                log_likelihoods=tuple(history),
                converged=converged,
            )
        assignment = wanted
