"""The unified gradient: what each method multiplies the gradient of a token's log-prob by.

Gradient *ascent* follows mean over replies o of 1/|o| sum_t delta_t grad log pi(o_t | ..), with one
delta per method (arXiv 2409.02795): for a loss of whole replies delta = -|o| dL/dS, (P, K), for a
loss of tokens -|o| B dL/dlogprob, (B, T), B the replies of a step. Closed forms, to read, to
diagnose a run and to hold the losses against. `COEFFICIENTS` has them by the name of the loss, or
for policy gradients by `ratio=` and its kind; `coefficient` finds that of a method.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from torch import Tensor

from configs.methods import METHODS
from configs.schema import AlgorithmConfig, KLConfig
from rl.coefficients import listwise, pointwise, policy, preference, rpo

__all__ = ["COEFFICIENTS", "Coefficient", "coefficient", "symbols"]


@dataclass(frozen=True, kw_only=True)
class Coefficient:
    """A delta as code and as one line of text, whose letters are explained by `symbols`."""

    function: Callable[..., Tensor]
    """Takes what the loss takes."""
    text: str


def _of(module: ModuleType) -> dict[str, Coefficient]:
    return {
        name: Coefficient(function=getattr(module, name), text=text)
        for name, text in module.TEXTS.items()
    }


COEFFICIENTS: dict[str, Coefficient] = {
    "rpo": Coefficient(function=rpo.rpo, text=rpo.TEXT),
    **_of(preference),
    **_of(pointwise),
    **_of(listwise),
    **_of(policy),
    **{
        f"ratio={kind}": Coefficient(function=policy.policy_gradient, text=text)
        for kind, text in policy.RATIO_TEXTS.items()
    },
}


def coefficient(method: str) -> Coefficient:
    """That of a row of the method table, its text as short as the row's settings allow.

    Raises KeyError for a loss whose coefficient nobody has written down.
    """
    settings = METHODS[method].algorithm
    if method in policy.TEXTS:
        return COEFFICIENTS[method]
    if "loss" not in settings:
        found = COEFFICIENTS[f"ratio={_set(settings, 'ratio')}"]
        return replace(found, text=_policy_text(settings))
    loss = settings["loss"]
    found = COEFFICIENTS[loss["name"]]
    if loss["name"] == "rpo":
        member = (loss["distance"], loss["target"], loss.get("implicit", "log_ratio"))
        return replace(found, text=rpo.MEMBERS.get(member, rpo.TEXT))
    return found


def _policy_text(settings: dict[str, Any]) -> str:
    kl = KLConfig(**settings.get("kl", {}))
    return policy.policy_text(
        ratio=_set(settings, "ratio"),
        aggregation=_set(settings, "aggregation"),
        advantage=_set(settings, "advantage"),
        kl=kl.estimator if kl.place == "loss" and kl.coef > 0 else "k1",
        is_whitened=_set(settings, "whiten_advantages"),
    )


def _set(settings: dict[str, Any], name: str) -> Any:
    """What the row sets, else the default."""
    return settings.get(name, AlgorithmConfig.model_fields[name].default)


_LETTERS = re.compile(r"\|o\||n̄|σ′|ρ_[go]|[A-Za-z]+|[^\W\d_]|±")


def symbols(text: str) -> dict[str, str]:
    """What the letters of a formula stand for: letter -> meaning, of those that occur."""
    found = _LETTERS.findall(text)
    return {letter: meaning for letter, meaning in SYMBOLS.items() if letter in found}


SYMBOLS = {
    "±": "+ for the chosen reply, − for the rejected",
    "Δ": "chosen less rejected",
    "w": "the chosen reply",
    "l": "the rejected reply",
    "y": "the explored reply",
    "|o|": "tokens of the reply",
    "n̄": "tokens of a reply on average",
    "L": "data.sampling.max_new_tokens",
    "K": "replies to the prompt",
    "S": "log-probability of the reply",
    "p": "log-probability per token",
    "h": "log-ratio of the reply to the reference",
    "r": "score, rating or label",
    "R": "score, less KL where KL is part of the reward",
    "z": "KTO's baseline, the mean h of other prompts' replies",
    "β": "beta",
    "η": "eta",
    "γ": "gamma",
    "ε": "epsilon",
    "α": "alpha",
    "σ": "the logistic",
    "σ′": "slope of the logistic",
    "ρ": "π/π_old of the token",
    "ρ_g": "π/π_old of the reply, per token",
    "ρ_o": "π/π_old of the reply",
    "open": "the clip does not bind",
    "best": "highest score of the group",
    "coef": "algorithm.kl.coef",
}
"""Letters of the texts; other words in them are settings of `algorithm.loss`."""
