"""Rewards that frozen models read off a conversation, one process or a ZeRO-3 group each."""

import json
from collections.abc import Sequence
from dataclasses import replace

import torch

from actors.frozen import FrozenModel
from actors.judges.answers import Scores, checked
from actors.specs import FrozenSpec
from configs.schema import RewardConfig
from rl.data.encode import encode_for_reward, encode_turns
from rl.feedback.ensemble import disagreement, mean_score, minimum_score, penalised_score
from rl.feedback.implicit import implicit_reward
from rl.folders import load_tokenizer
from rl.types import Rollout


class ModelReward:
    """A sequence-classification model that reads the conversation through its own template.

    With several workers, each is called with a share of the replies and all must be called.
    """

    def __init__(self, name: str, spec: FrozenSpec, address: str = "") -> None:
        self.name = name
        self.model = FrozenModel(spec, address)
        self.tokenizer = load_tokenizer(spec.path)
        # A constant that training found and exported, so that scores start near 0.
        self.bias = float(json.loads(self.model.config_path.read_text()).get("reward_bias", 0.0))

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """The value after the last token of each conversation, less the model's bias."""
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


class EnsembleReward:
    """Several reward models of one scale: their mean, their lowest, or their mean less doubt."""

    def __init__(
        self, name: str, reward: RewardConfig, spec: FrozenSpec, address: str = ""
    ) -> None:
        self.name, self.reward = name, reward
        self.models = [ModelReward(name, replace(spec, path=p), address) for p in reward.paths]

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """The joint score, and how far the models are apart as `name/disagreement`."""
        scores = torch.tensor(  # (M, B)
            [model.score(rollouts)[self.name] for model in self.models], dtype=torch.float64
        )
        match self.reward.reduce:
            case "mean":
                joint = mean_score(scores)
            case "minimum":
                joint = minimum_score(scores)
            case "penalised":
                assert self.reward.penalty is not None
                joint = penalised_score(scores, self.reward.penalty)
        return {
            self.name: checked(self.name, joint.tolist(), rollouts),
            f"{self.name}/disagreement": tuple(disagreement(scores).tolist()),
        }


class ImplicitReward:
    """What preference training taught a policy: beta times its log-ratio to where it started.

    Both models read the conversation in the policy's template, the reply ended by EOS.
    """

    def __init__(
        self, name: str, reward: RewardConfig, spec: FrozenSpec, address: str = ""
    ) -> None:
        assert reward.reference is not None
        assert reward.beta is not None
        self.name, self.beta = name, reward.beta
        self.length_normalised = reward.length_normalised
        self.tokenizer = load_tokenizer(spec.path, field=f"feedback.rewards.{name}.path")
        self.models = [
            FrozenModel(replace(spec, kind="policy", path=path), address)
            for path in (spec.path, reward.reference)
        ]

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """beta * (S - S_ref), per token where lengths are normalised."""
        turns = encode_turns(
            [rollout.prompt for rollout in rollouts],
            [rollout.text for rollout in rollouts],
            self.tokenizer,
        )
        sequences = [[*prompt, *reply] for prompt, reply in turns]
        starts = [len(prompt) for prompt, _ in turns]
        policy, reference = (
            torch.stack([output.double().sum() for output in model.outputs(sequences, starts)])
            for model in self.models
        )
        lengths = torch.tensor([len(reply) for _, reply in turns])
        scores = implicit_reward(
            policy, reference, self.beta, lengths if self.length_normalised else None
        )
        return {self.name: checked(self.name, scores.tolist(), rollouts)}
