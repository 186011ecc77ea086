"""Reward models for groups of annotators who agree: hard EM around whole trainings (MaxMin-RLHF).

    round ─▶ one training per model, on the pairs of its annotators ─▶ log-likelihood of every
      ▲      annotator under every model ─▶ each moves to the model that suits them best ──┐
      └─────────────────────────────────────────────────────────────────────────────────────┘

Each training is a run of its own, in mixture/round=R/model=M, that goes on from the weights of the
round before. A round whose likelihoods are on disk is not run again, so `--resume` goes on.

Annotators choose by their held-out pairs: a model has memorised the pairs it was trained on, so by
those nobody leaves the model that chance gave them (two of eleven stayed when it was tried). The
maths is `rl.feedback.mixture` (arXiv 2402.08925).
"""

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from cluster.inputs import Inputs, annotator_of, annotators, prepare_run_dir
from cluster.jobs import OfflineJob, offline
from cluster.metrics.labels import MIXTURE
from cluster.metrics.monitor import monitored
from cluster.progress import RunProgress
from cluster.scoring import merge_scores, reward_groups
from cluster.training import Failure, fit, never, trainer
from configs.schema import FeedbackConfig, MixtureConfig, RewardConfig, RunConfig
from rl.data.stored import stored_rollouts
from rl.feedback.mixture import hard_em
from rl.types import PreferencePair

CHUNK = 512
"""Pairs in one scoring call."""
LIKELIHOODS = "log_likelihoods.json"

Finish = Callable[[RunConfig], None]


def fit_mixture(
    config: RunConfig,
    inputs: Inputs,
    progress: RunProgress,
    finish_policy: Finish,
    failure: Failure = never,
) -> dict[str, Any]:
    """Fit and assign until nobody moves; writes models/M and mixture.json, returns the latter.

    `finish_policy` completes the model folder of one training; `failure` is that of `fit`.
    """
    settings = config.feedback.mixture
    assert settings is not None
    folder = Path(config.cluster.run_dir)
    names = annotators(inputs.train, settings)
    rounds = _Rounds(config, inputs, names, progress, finish_policy, failure)
    found = hard_em(
        rounds.fit,
        rounds.log_likelihood,
        settings.num_models,
        len(names),
        seed=config.data.seed,
        max_rounds=settings.max_rounds,
        min_gain=settings.min_gain,
    )
    assignment = dict(zip(names, found.assignment.tolist(), strict=True))
    for number, model in enumerate(found.models):
        shutil.copytree(model, folder / "models" / str(number), dirs_exist_ok=True)
    result = {
        "assignment": assignment,
        "log_likelihoods": list(found.log_likelihoods),
        "converged": found.converged,
        "held_out_accuracy": rounds.accuracies(assignment, found.models),
    }
    (folder / "mixture.json").write_text(json.dumps(result, indent=1))
    rounds.clear()
    return {"mixture": result}


class _Rounds:
    """Trainings and likelihoods of one mixture, each on disk when it is done."""

    judged: list[PreferencePair]
    """Held-out pairs of every annotator; of those who have none, the ones that are learned from."""

    def __init__(
        self,
        config: RunConfig,
        inputs: Inputs,
        names: list[str],
        progress: RunProgress,
        finish_policy: Finish,
        failure: Failure,
    ) -> None:
        assert config.feedback.mixture is not None
        self.config, self.settings = config, config.feedback.mixture
        self.inputs, self.names, self.progress = inputs, names, progress
        self.finish_policy, self.failure = finish_policy, failure
        known = {annotator_of(pair, self.settings) for pair in inputs.validation}
        self.judged = [p for p in inputs.validation if annotator_of(p, self.settings) in names]
        self.judged += [p for p in inputs.train if annotator_of(p, self.settings) not in known]
        self.folder = Path(config.cluster.run_dir) / MIXTURE
        self.number = 0

    def fit(self, assignment: torch.Tensor) -> list[Path]:
        """One training per model; the folders of the models."""
        self.number += 1
        owners = dict(zip(self.names, assignment.tolist(), strict=True))
        counts = Counter(owners.values())
        models = []
        for model in range(self.settings.num_models):
            people = f"{counts[model]} of {len(self.names)} annotators"
            self.progress.status(
                f"round {self.number} of at most {self.settings.max_rounds}, "
                f"model {model}: {people}"
            )
            models.append(self._train(model, owners))
        return models

    def _at(self, number: int, model: int) -> Path:
        return self.folder / f"round={number}" / f"model={model}"

    def _train(self, model: int, owners: dict[str, int]) -> Path:
        at = self._at(self.number, model)
        if (at / "done").exists() or self._likelihoods().exists():
            return at / "policy"
        config = self._config(model)
        prepare_run_dir(config, resume=(at / "config.yaml").exists())
        own = partial(_own, owners=owners, model=model, settings=self.settings)
        job = OfflineJob(
            config=config,
            pad_token_id=self.inputs.pad_token_id,
            train=own(self.inputs.train),
            validation=own(self.inputs.validation) or self.inputs.validation,
        )
        with monitored(config):
            fit(config, trainer(config, offline, job), self.progress, self.failure)
        self.finish_policy(config)
        (at / "done").touch()
        return at / "policy"

    def _config(self, model: int) -> RunConfig:
        start = self.config.model.path
        if self.number > 1:
            start = str(self._at(self.number - 1, model) / "policy")
        run_dir = str(self._at(self.number, model))
        return self.config.model_copy(
            update={
                "model": self.config.model.model_copy(update={"path": start}),
                "cluster": self.config.cluster.model_copy(update={"run_dir": run_dir}),
                "feedback": FeedbackConfig(),
            }
        )

    def log_likelihood(self, models: list[Path]) -> torch.Tensor:
        """(M, U) of every annotator's `judged` pairs under every model, nats."""
        file = self._likelihoods()
        if not file.exists():
            margins = self._margins(models, self.judged)  # (M, pairs)
            index = {name: number for number, name in enumerate(self.names)}
            rows = [index[annotator_of(pair, self.settings)] for pair in self.judged]
            sums = torch.zeros(len(models), len(self.names), dtype=torch.float64)
            sums.index_add_(1, torch.tensor(rows), logsigmoid(margins))
            file.write_text(json.dumps(sums.tolist()))
            # The next round starts from this one's weights; nothing reads what was before.
            for old in (self.folder / f"round={self.number - 1}").glob("model=*"):
                shutil.rmtree(old)
        return torch.tensor(json.loads(file.read_text()), dtype=torch.float64)

    def _likelihoods(self) -> Path:
        return self.folder / f"round={self.number}" / LIKELIHOODS

    def accuracies(self, assignment: dict[str, int], models: Sequence[Path]) -> dict[str, float]:
        """Share of each annotator's held-out pairs that their own model orders as they did."""
        pairs = [p for p in self.inputs.validation if annotator_of(p, self.settings) in assignment]
        margins = self._margins(models, pairs)
        right: dict[str, list[bool]] = {}
        for column, pair in enumerate(pairs):
            name = annotator_of(pair, self.settings)
            right.setdefault(name, []).append(bool(margins[assignment[name], column] > 0))
        return {name: sum(rows) / len(rows) for name, rows in sorted(right.items())}

    def _margins(self, models: Sequence[Path], pairs: Sequence[PreferencePair]) -> torch.Tensor:
        """(M, pairs): score of the chosen less that of the rejected reply."""
        self.progress.status(f"asking {len(models)} models about {len(pairs)} pairs")
        rewards = {
            f"model-{number}": RewardConfig(kind="model", path=str(path))
            for number, path in enumerate(models)
        }
        feedback = self.config.feedback.model_copy(update={"rewards": rewards})
        config = self.config.model_copy(update={"feedback": feedback})
        scores = asyncio.run(_scores(config, pairs))
        values = torch.tensor([scores[name] for name in rewards], dtype=torch.float64)
        chosen, rejected = values.reshape(len(models), len(pairs), 2).unbind(-1)
        return chosen - rejected

    def clear(self) -> None:
        """Remove the rounds; their last models have been copied."""
        shutil.rmtree(self.folder)


def _own(
    pairs: Sequence[PreferencePair], *, owners: dict[str, int], model: int, settings: MixtureConfig
) -> list[PreferencePair]:
    """The pairs of a model's annotators."""
    return [pair for pair in pairs if owners.get(annotator_of(pair, settings)) == model]


async def _scores(config: RunConfig, pairs: Sequence[PreferencePair]) -> dict[str, list[float]]:
    """Of all chosen and rejected replies side by side, by each reward."""
    groups = reward_groups(config)
    found: dict[str, list[float]] = {name: [] for name in groups}
    try:
        for start in range(0, len(pairs), CHUNK):
            rollouts = [
                rollout
                for number, pair in enumerate(pairs[start : start + CHUNK])
                for rollout in stored_rollouts(number, pair, 0)
            ]
            for name, group in groups.items():
                found[name] += merge_scores(await group.score(rollouts))[name]
    finally:
        for group in groups.values():
            group.end()
    return found
