"""What the ranks of a learner run in these tests; the test process only hands it out.

Every function is a task for `Ranks.run`. Rank `r` takes `shares[r]` of the rows. DeepSpeed and the
learner are imported inside, because the test process imports this file without using either.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.schema import RunConfig
from tests.integration.toy import PAD

if TYPE_CHECKING:
    from actors.learner import Learner, Role


def build(config: RunConfig, pad_token_id: int = PAD) -> "Learner":
    """A learner of this process group."""
    import torch

    from actors.learner import Learner

    torch.manual_seed(0)
    return Learner(config, pad_token_id)


def train(learner: "Learner", rows: Sequence[Any]) -> dict[str, float]:
    """One learner step of whatever the configuration names."""
    from actors.policy_update import update_policy
    from actors.supervised_update import objective

    if learner.is_offline:
        return objective(learner).train(rows)
    return update_policy(learner, rows)[0]


class Recorder:
    """Notes the full gradients of a role's first optimizer step, before they are applied."""

    def __init__(self, learner: "Learner", role: "Role") -> None:
        from deepspeed.utils import safe_get_full_grad

        from actors.zero import inner_model

        engine: Any = learner.engines[role]
        model = inner_model(engine)
        self.parameters = parameters = dict(model.named_parameters())
        self.found: dict[str, np.ndarray] = {}
        self.num_micro_batches = self.num_layer_passes = 0
        apply, backward = engine.step, engine.backward

        def step() -> None:
            for name, parameter in parameters.items():
                gradient = safe_get_full_grad(parameter)
                assert gradient is not None, f"{name} has no gradient"
                self.found.setdefault(name, gradient.cpu().numpy().copy())
            apply()

        def count(loss: Any) -> None:
            self.num_micro_batches += not self.found
            backward(loss)

        def count_layer(*_: Any) -> None:
            self.num_layer_passes += model.training and not self.found

        engine.step, engine.backward = step, count
        model.get_submodule("model.layers.0.mlp").register_forward_pre_hook(count_layer)

    @property
    def is_partitioned(self) -> bool:
        """Whether no rank holds a whole parameter between steps."""
        return all(parameter.numel() == 0 for parameter in self.parameters.values())


def first_step(
    config: RunConfig, shares: Sequence[Sequence[Any]], pad_token_id: int = PAD, multiple: int = 8
) -> dict[str, Any]:
    """A learner's first step: metrics, and for each role gradients and number of micro-batches."""
    from rl import batching

    usual, batching.MULTIPLE = batching.MULTIPLE, multiple
    try:
        learner = build(config, pad_token_id)
        recorders = {role: Recorder(learner, role) for role in learner.engines}
        metrics = train(learner, shares[learner.rank])
    finally:
        batching.MULTIPLE = usual
    return {
        "metrics": metrics,
        "gradients": {r: recorder.found for r, recorder in recorders.items() if not learner.rank},
        "num_micro_batches": {r: recorder.num_micro_batches for r, recorder in recorders.items()},
        "num_layer_passes": {r: recorder.num_layer_passes for r, recorder in recorders.items()},
        "is_partitioned": all(recorder.is_partitioned for recorder in recorders.values()),
    }


def optimizer_step(config: RunConfig, shares: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """One step of the policy: its metrics, AdamW's first moments and the change of every tensor."""
    import deepspeed.utils as full

    from actors.zero import inner_model

    learner = build(config)
    parameters: Any = dict(inner_model(learner.engines["policy"]).named_parameters())
    weight_of: Any = full.safe_get_full_fp32_param
    state_of: Any = full.safe_get_full_optimizer_state
    before = {name: weight_of(p).clone() for name, p in parameters.items()}
    metrics = train(learner, shares[learner.rank])
    moments, changes = {}, {}
    for name, p in parameters.items():
        moments[name] = state_of(p, "exp_avg").numpy().copy()
        changes[name] = (weight_of(p) - before[name]).numpy()
    return {"metrics": metrics, "moments": moments, "changes": changes}


def answers(config: RunConfig, shares: Sequence[Sequence[Any]]) -> dict[str, list[np.ndarray]]:
    """Per rollout of this rank, the response tokens' log-probs, entropies and values, and probes.

    Probes are log-probs of the whole sequences at temperature 1.
    """
    return read(build(config), shares)


def read(learner: "Learner", shares: Sequence[Sequence[Any]]) -> dict[str, list[np.ndarray]]:
    """`answers` of a learner that exists."""
    from rl.experience import build_batch

    batch = build_batch(shares[learner.rank], learner.pad_token_id)
    mask, lengths = batch.response_mask, batch.lengths
    temperature = learner.config.data.sampling.temperature
    logprobs, entropies = learner.logprobs(batch.tokens, lengths, mask, temperature)
    found = {"logprobs": logprobs, "entropies": entropies}
    if "critic" in learner.engines:
        found["values"] = learner.values(batch.tokens, lengths, mask)
    sequences = [row[:length].tolist() for row, length in zip(batch.tokens, lengths, strict=True)]
    return {
        name: [row[at].numpy().copy() for row, at in zip(rows, mask, strict=True)]
        for name, rows in found.items()
    } | {"probes": [row.numpy().copy() for row in learner.probe(sequences)]}


def interrupted(
    config: RunConfig, steps: Sequence[Sequence[Sequence[Any]]], folder: Path
) -> dict[str, Any]:
    """Take every step, saving a checkpoint before the last one; what the last one came to.

    Each rank writes into a folder of its own, as under Ray Train, which puts them together.
    """
    learner = build(config)
    for shares in steps[:-1]:
        train(learner, shares[learner.rank])
    mine = folder / str(learner.rank)
    mine.mkdir(parents=True)
    learner.save(mine)
    return _last_step(learner, steps[-1])


def resumed(
    config: RunConfig, steps: Sequence[Sequence[Sequence[Any]]], folder: Path, work: Path
) -> dict[str, Any]:
    """Load the checkpoint, each rank with a work folder of its own, and take the last step."""
    learner = build(config)
    learner.load(folder, work / str(learner.rank))
    return _last_step(learner, steps[-1])


def _last_step(learner: "Learner", shares: Sequence[Sequence[Any]]) -> dict[str, Any]:
    state = asdict(learner.state)
    metrics = train(learner, shares[learner.rank])
    keys = [(r.group_id, r.sample) for group in shares[learner.rank] for r in group.rollouts]
    return {"state": state, "metrics": metrics, "answers": read(learner, shares), "keys": keys}


def exported(
    config: RunConfig,
    shares: Sequence[Sequence[Any]],
    folder: Path,
    shard_bytes: int | None = None,
    reward_bias: float | None = None,
) -> dict[str, list[np.ndarray]]:
    """Take a step and export; the answers of the learner that was exported."""
    from actors import zero

    learner = build(config)
    train(learner, shares[learner.rank])
    if reward_bias is not None:
        learner.set_reward_bias(reward_bias)
    usual = zero.SHARD_BYTES
    try:
        zero.SHARD_BYTES = usual if shard_bytes is None else shard_bytes
        learner.export(folder)
    finally:
        zero.SHARD_BYTES = usual
    return (
        pair_scores(learner, shares)
        if config.algorithm.name == "reward_model"
        else read(learner, shares)
    )


def pair_scores(learner: "Learner", shares: Sequence[Sequence[Any]]) -> dict[str, list[np.ndarray]]:
    """(2,) scores of every pair of this rank."""
    from actors.supervised_update import PairRanking

    return {
        "scores": [row.numpy().copy() for row in PairRanking(learner).scores(shares[learner.rank])]
    }


def export_to_a_full_disk(config: RunConfig, folder: Path) -> str:
    """Export into shards of one layer with a disk that is full after the first; the error."""
    from actors import zero

    learner = build(config)
    write, usual, files = zero.save_file, zero.SHARD_BYTES, []

    def save_file(tensors: Any, path: Path, **kwargs: Any) -> None:
        if files:
            raise OSError(28, "No space left on device")
        files.append(path)
        write(tensors, path, **kwargs)

    try:
        zero.save_file, zero.SHARD_BYTES = save_file, 1
        learner.export(folder)
    except OSError as error:
        return str(error)
    finally:
        zero.save_file, zero.SHARD_BYTES = write, usual
    return ""


def supervised_run(
    config: RunConfig, steps: Sequence[Sequence[Sequence[Any]]], held_out: Sequence[Sequence[Any]]
) -> list[dict[str, float]]:
    """Metrics of every step, then those of held-out rows before the first and after the last."""
    from actors.supervised_update import objective

    learner = build(config)
    task = objective(learner)
    before = task.validate(held_out[learner.rank])
    metrics = [task.train(shares[learner.rank]) for shares in steps]
    return [*metrics, before, task.validate(held_out[learner.rank])]


def scores_of_pairs(
    config: RunConfig, batches: Sequence[Sequence[Sequence[Any]]]
) -> list[list[np.ndarray]]:
    """Per batch, the (2,) scores of its pairs by an untrained reward model."""
    learner = build(config)
    return [pair_scores(learner, shares)["scores"] for shares in batches]
