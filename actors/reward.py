"""Judges: one named reward each, from a model, a user's Python function, labels, or the gold rule.

Whatever the kind, `score` returns one finite number per reply and, for rewards with named parts,
the parts beside it. Anything else is an error that names the reward and the first wrong reply.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, Protocol

from actors.judges.answers import Scores, checked
from actors.rollout import EngineSpec
from actors.specs import FrozenSpec
from configs.schema import RewardConfig
from rl.types import Rollout

RewardFunction = Callable[[list[str], list[str], list[dict[str, Any]]], Any]


class Judge(Protocol):
    """What a reward actor is made of."""

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """Judge replies; raises `ValueError` naming the reward when it cannot."""
        ...


class FunctionReward:
    """A user's function `reward(prompts, replies, rows) -> list[float]` in a Python file."""

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self.path = path
        self.function = load_function(path)

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """Call the function on all replies at once."""
        try:
            scores = self.function(*texts(rollouts))
        except Exception as error:  # whatever a user's function raises is the user's to mend
            raise ValueError(
                f"reward {self.name}: {self.path} raised {type(error).__name__}: {error}"
            ) from error
        return {self.name: checked(self.name, scores, rollouts)}


class GoldReward:
    """The built-in world's true reward and its named parts."""

    def __init__(self, name: str) -> None:
        self.name = name

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """By rule; rows must come from the built-in world."""
        from rl.world.gold import gold_reward

        parts = gold_reward(*texts(rollouts))
        return {
            key.replace("gold", self.name, 1): checked(self.name, values, rollouts)
            for key, values in parts.items()
        }


class LabelReward:
    """What the data set says of its own replies."""

    def __init__(self, name: str, threshold: float | None = None) -> None:
        self.name = name
        self.threshold = threshold

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """The labels, as 1 and 0 where there is a threshold; `ValueError` where one is missing."""
        for rollout in rollouts:
            if rollout.label is None:
                raise ValueError(
                    f"reward {self.name}: the reply to row {rollout.prompt.row} was sampled and "
                    "has no label; use a reward that can judge it"
                )
        labels = checked(self.name, [rollout.label for rollout in rollouts], rollouts)
        if self.threshold is not None:
            labels = tuple(float(label >= self.threshold) for label in labels)
        return {self.name: labels}


def build_judge(
    name: str,
    reward: RewardConfig,
    spec: FrozenSpec | EngineSpec | None = None,
    address: str = "",
) -> Judge:
    """The judge that a reward's configuration names; a model also needs its spec, and its group
    the address of rank 0.
    """
    match reward.kind:
        case "gold":
            return GoldReward(name)
        case "label":
            return LabelReward(name, reward.threshold)
        case "function":
            assert reward.path is not None
            return FunctionReward(name, reward.path)
        case "llm_judge":
            from actors.judges.llm import LLMJudge

            assert isinstance(spec, EngineSpec)
            return LLMJudge(name, reward, spec)
    assert isinstance(spec, FrozenSpec)
    match reward.kind:
        case "model":
            from actors.judges.models import ModelReward

            return ModelReward(name, spec, address)
        case "ensemble":
            from actors.judges.models import EnsembleReward

            return EnsembleReward(name, reward, spec, address)
        case "implicit":
            from actors.judges.models import ImplicitReward

            return ImplicitReward(name, reward, spec, address)
        case "classifier":
            from actors.judges.classifiers import ClassifierReward

            return ClassifierReward(name, reward, spec)
        case "ranker":
            from actors.judges.ranker import RankerReward

            return RankerReward(name, reward, spec)


def texts(rollouts: Sequence[Rollout]) -> tuple[list[str], list[str], list[dict[str, Any]]]:
    """Prompts, replies and the rows' other columns, as reward functions take them."""
    return (
        [rollout.prompt.text for rollout in rollouts],
        [rollout.text for rollout in rollouts],
        [dict(rollout.prompt.extra) for rollout in rollouts],
    )


def load_function(path: str) -> RewardFunction:
    """The function in `file.py` (named `reward`) or `file.py:name`; refused in one line."""
    file, _, function_name = path.partition(":")
    function_name = function_name or "reward"
    if not Path(file).is_file():
        raise ValueError(
            f"{file}: no such file; give the path of a Python file with `{function_name}`"
        )
    loader = SourceFileLoader(f"attune_reward_{Path(file).stem}", file)  # whatever its suffix
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # dataclasses, among others, look their module up
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's file raises is the user's mistake
        raise ValueError(f"{file}: importing it failed: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"{file}: has no function {function_name}(prompts, replies, rows)")
    return function
