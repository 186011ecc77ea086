"""Judges: one named reward each, from a reward model, a user's Python function, or the gold rule.

Whatever the kind, `score` returns one finite number per reply and, for rewards with named parts,
the parts beside it. Anything else is an error that names the reward and the first wrong reply.
"""

import importlib.util
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, Protocol

from actors.specs import FrozenSpec
from configs.schema import RewardConfig
from rl.types import Rollout

Scores = dict[str, tuple[float, ...]]
"""(B,) per name; `name/part` beside `name`."""
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


class ModelReward:
    """A sequence-classification model that reads the conversation through its own template.

    With several workers, each is called with a share of the replies and all must be called.
    """

    def __init__(self, name: str, spec: FrozenSpec, address: str = "") -> None:
        from actors.frozen import FrozenModel
        from rl.folders import load_tokenizer

        self.name = name
        self.model = FrozenModel(spec, address)
        self.tokenizer = load_tokenizer(spec.path)
        # A constant that training found and exported, so that scores start near 0.
        self.bias = float(json.loads(self.model.config_path.read_text()).get("reward_bias", 0.0))

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """The value after the last token of each conversation, less the model's bias."""
        from rl.data.encode import encode_for_reward

        encoded = encode_for_reward(
            [rollout.prompt for rollout in rollouts],
            [rollout.text for rollout in rollouts],
            self.tokenizer,
        )
        # Values are read before a token: one more position follows the last one.
        sequences = [[*tokens, 0] for tokens in encoded]
        outputs = self.model.outputs(sequences, [len(tokens) for tokens in encoded])
        scores = [float(output[0]) - self.bias for output in outputs]
        return {self.name: checked(self.name, scores, rollouts)}


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
    name: str, reward: RewardConfig, spec: FrozenSpec | None = None, address: str = ""
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
        case "model":
            assert spec is not None
            return ModelReward(name, spec, address)


def texts(rollouts: Sequence[Rollout]) -> tuple[list[str], list[str], list[dict[str, Any]]]:
    """Prompts, replies and the rows' other columns, as reward functions take them."""
    return (
        [rollout.prompt.text for rollout in rollouts],
        [rollout.text for rollout in rollouts],
        [dict(rollout.prompt.extra) for rollout in rollouts],
    )


def checked(name: str, scores: Any, rollouts: Sequence[Rollout]) -> tuple[float, ...]:
    """One finite float per reply, or `ValueError`: a failed score is never taken for a number."""
    is_list = not isinstance(scores, Mapping | Set | str | bytes)
    try:
        listed = list(scores) if is_list else None
    except TypeError:  # None, a single number, an array without dimensions
        listed = None
    if listed is None:
        raise ValueError(
            f"reward {name} returned {type(scores).__name__}; return a list of floats, one a reply"
        )
    if len(listed) != len(rollouts):
        raise ValueError(
            f"reward {name} returned {len(listed)} scores for {len(rollouts)} replies; "
            "return one per reply, in order"
        )
    numbers = []
    for index, score in enumerate(listed):
        try:
            number = float(score)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"reward {name} returned {score!r} for reply {index}; return a float"
            ) from error
        if not math.isfinite(number):
            raise ValueError(
                f"reward {name} returned {number} for reply {index} "
                f"({rollouts[index].text[:40]!r}); return a finite float"
            )
        numbers.append(number)
    return tuple(numbers)


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
