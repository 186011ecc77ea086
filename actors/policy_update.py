"""One learner step of a policy-gradient method: experiences in, an updated policy and metrics out.

    old log-probs, values ─▶ scores ─▶ KL, advantages ─▶ importance weights ─▶ epochs × minibatches

The maths is in `rl/`; this file puts it in order and reduces counts over ranks in between.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from actors.learner import Learner
from actors.scores import combined_scores
from configs.schema import GROUPED, AlgorithmConfig
from rl import advantages as adv
from rl import kl as kl_maths
from rl import rewards as reward_maths
from rl.correction import (
    correction_metrics,
    correction_sums,
    correction_weights,
    normalise_weights,
    weight_sums,
)
from rl.experience import PolicyBatch, build_batch
from rl.logprobs import NextTokenLayout
from rl.losses.policy import policy_metrics, policy_objective
from rl.losses.value import explained_variance, value_loss, value_sums
from rl.masking import aggregate, masked_sum, moment_sums, whiten
from rl.types import Experience, Metrics


@dataclass(frozen=True, kw_only=True, eq=False)
class Targets:
    """Constants of the update, computed before its first optimizer step; (B, T) but `scores`."""

    loss_mask: torch.Tensor
    old_logprobs: torch.Tensor
    advantages: torch.Tensor
    weights: torch.Tensor
    values: torch.Tensor
    returns: torch.Tensor
    scores: torch.Tensor
    """(B,) after penalty, clip and normalisation."""


def update_policy(
    learner: Learner, experiences: Sequence[Experience]
) -> tuple[Metrics, PolicyBatch, Targets]:
    """One learner step on this rank's groups; metrics are the same on every rank."""
    batch = build_batch(experiences, learner.pad_token_id)
    targets, metrics = prepare(learner, batch)
    metrics |= _optimise(learner, batch, targets)
    coef = learner.state.kl_coef
    metrics["kl/coef"] = coef
    settings = learner.config.algorithm.kl
    if settings.target is not None:
        num_samples = int(learner.reduce(batch.response_mask.any(-1).sum()))
        coef = kl_maths.adaptive_kl(
            coef, metrics["kl/ref_k1"], settings.target, settings.horizon, num_samples
        )
    learner.finish_step(kl_coef=coef)
    return metrics, batch, targets


def prepare(learner: Learner, batch: PolicyBatch) -> tuple[Targets, Metrics]:
    """Everything that is fixed before the first optimizer step, and its metrics."""
    algorithm = learner.config.algorithm
    mask = batch.response_mask
    temperature = learner.config.data.sampling.temperature
    recomputed, entropy = learner.logprobs(batch.tokens, batch.lengths, mask, temperature)
    old = batch.rollout_logprobs if algorithm.correction.mode == "bypass" else recomputed
    scores, metrics = combined_scores(learner, batch)
    loss_mask = _loss_mask(batch, scores, algorithm)
    kl = kl_maths.kl_estimate(old, batch.ref_logprobs, algorithm.kl.estimator)
    values = returns = torch.zeros_like(old)
    if algorithm.advantage in GROUPED:
        advantages = _group_advantages(learner, batch, scores, kl)
    elif algorithm.advantage == "gae":
        values = learner.values(batch.tokens, batch.lengths, mask) * mask
        rewards = _token_rewards(learner, batch, scores, kl)
        advantages, returns = adv.gae(rewards, values, mask, algorithm.gamma, algorithm.lam)
        metrics["explained_variance"] = explained_variance(
            learner.reduce(value_sums(values, returns, mask))
        )
    else:
        rewards = _token_rewards(learner, batch, scores, kl)
        advantages = adv.reward_to_go(rewards, mask, algorithm.gamma)
    if algorithm.whiten_advantages:
        sums = learner.reduce(moment_sums(advantages, loss_mask))
        advantages = whiten(advantages, loss_mask, sums)
    weights = _correction(learner, batch, recomputed, algorithm, metrics)
    metrics |= _sampling_metrics(learner, batch, recomputed, entropy)
    targets = Targets(
        loss_mask=loss_mask,
        old_logprobs=old,
        advantages=advantages,
        weights=weights,
        values=values,
        returns=returns,
        scores=scores,
    )
    return targets, metrics


def _loss_mask(
    batch: PolicyBatch, scores: torch.Tensor, algorithm: AlgorithmConfig
) -> torch.Tensor:
    """(B, T) bool: the sampled tokens that the policy learns from."""
    kept = adv.rows_to_learn_from(
        algorithm.advantage, scores, batch.group_rows, filter_groups=algorithm.filter_groups
    )
    if algorithm.mask_truncated:
        kept = kept & batch.finished
    return batch.response_mask & kept[:, None]


def _kl_coef_in_reward(learner: Learner) -> float:
    return learner.state.kl_coef if learner.config.algorithm.kl.place == "reward" else 0.0


def _group_advantages(
    learner: Learner, batch: PolicyBatch, scores: torch.Tensor, kl: torch.Tensor
) -> torch.Tensor:
    """(B, T): one advantage per reply, from its group's scores and their KL."""
    mask = batch.response_mask
    shaped = reward_maths.shaped_scores(scores, kl, mask, _kl_coef_in_reward(learner))
    sums = learner.reduce(moment_sums(shaped, mask.any(-1)))
    per_reply = adv.group_advantages(
        learner.config.algorithm.advantage, shaped, batch.group_rows, sums
    )
    return adv.spread_over_tokens(per_reply, mask)


def _token_rewards(
    learner: Learner, batch: PolicyBatch, scores: torch.Tensor, kl: torch.Tensor
) -> torch.Tensor:
    """(B, T): KL on every token and the score on the last one."""
    mask = batch.response_mask
    rewards = reward_maths.token_rewards(scores, kl, mask, _kl_coef_in_reward(learner))
    if learner.config.algorithm.whiten_rewards:
        sums = learner.reduce(moment_sums(rewards, mask))
        rewards = whiten(rewards, mask, sums, restore_mean=True)
    return rewards


def _correction(
    learner: Learner,
    batch: PolicyBatch,
    recomputed: torch.Tensor,
    algorithm: AlgorithmConfig,
    metrics: Metrics,
) -> torch.Tensor:
    """(B, T) importance weights of the sampler's drift; its metrics are always recorded."""
    settings, mask = algorithm.correction, batch.response_mask
    weights, _ = correction_weights(
        recomputed,
        batch.rollout_logprobs,
        mask,
        mode=settings.mode,
        low=settings.low,
        high=settings.high,
        veto=settings.veto,
    )
    if settings.batch_normalise:
        weights = normalise_weights(weights, learner.reduce(weight_sums(weights, mask)))
    sums, extremes = correction_sums(
        recomputed,
        batch.rollout_logprobs,
        mask,
        mode=settings.mode,
        low=settings.low,
        high=settings.high,
    )
    reduced = learner.reduce(sums), learner.reduce(extremes, dist.ReduceOp.MAX)
    metrics |= correction_metrics(*reduced)
    return weights


def _sampling_metrics(
    learner: Learner, batch: PolicyBatch, logprobs: torch.Tensor, entropy: torch.Tensor
) -> Metrics:
    """KL to the reference, entropy, lengths and ends of the replies."""
    mask = batch.response_mask
    lengths, is_sampled = mask.sum(-1), mask.any(-1)
    k3 = kl_maths.kl_estimate(logprobs, batch.ref_logprobs, "k3")
    k1 = kl_maths.kl_estimate(logprobs, batch.ref_logprobs, "k1")
    sums = [
        masked_sum(k1, mask),
        masked_sum(k3, mask),
        masked_sum(entropy, mask),
        lengths.sum(),
        (batch.finished & is_sampled).sum(),
        is_sampled.sum(),
    ]
    k1_sum, k3_sum, entropy_sum, num_tokens, num_finished, num_replies = learner.reduce(
        torch.stack([value.double() for value in sums])
    ).tolist()
    return {
        "kl/ref_k1": k1_sum / num_replies,
        "kl/ref_k3": k3_sum / num_replies,
        "entropy": entropy_sum / max(num_tokens, 1),
        "length/mean": num_tokens / num_replies,
        "length/max": float(learner.maximum(int(lengths.max()))),
        "eos_rate": num_finished / num_replies,
        "num_tokens": num_tokens,
    }


def minibatches(
    batch: PolicyBatch, count: int, epoch: int, version: int, seed: int
) -> list[list[int]]:
    """Rows of `count` minibatches of whole groups, shuffled anew for each step and epoch."""
    generator = torch.Generator().manual_seed(hash((seed, version, epoch)) % 2**31)
    order = torch.randperm(len(batch.group_rows), generator=generator).tolist()
    if count == 1:
        order = sorted(order)
    parts = [order[index::count] for index in range(count)]
    return [[row for group in part for row in batch.group_rows[group]] for part in parts]


def _optimise(learner: Learner, batch: PolicyBatch, targets: Targets) -> Metrics:
    """All epochs and minibatches; metrics are means over the optimizer steps."""
    algorithm = learner.config.algorithm
    policy_sums = torch.zeros(4, dtype=torch.float64)
    losses = {"loss/policy": 0.0, "loss/value": 0.0, "grad_norm": 0.0}
    num_steps = 0
    for epoch in range(algorithm.num_epochs):
        for rows in minibatches(
            batch, algorithm.num_minibatches, epoch, learner.state.version, learner.config.data.seed
        ):
            update = MinibatchUpdate(learner, batch, targets, rows)
            losses["grad_norm"] += update.step_policy()
            if algorithm.advantage == "gae":
                update.step_critic()
            losses["loss/policy"] += update.policy_loss
            losses["loss/value"] += update.value_loss
            policy_sums += update.sums
            num_steps += 1
    totals = learner.reduce(
        torch.tensor([losses["loss/policy"], losses["loss/value"]], dtype=torch.float64)
    )
    metrics = {
        "loss/policy": float(totals[0]) / num_steps,
        "grad_norm": losses["grad_norm"] / num_steps,
        "learning_rate": algorithm.optimizer.learning_rate
        * learner.learning_rate_factor(algorithm.optimizer),
    }
    if algorithm.advantage == "gae":
        metrics["loss/value"] = float(totals[1]) / num_steps
    return metrics | policy_metrics(learner.reduce(policy_sums))


class MinibatchUpdate:
    """The losses of one optimizer step; sums are over this rank's rows, counts over all ranks."""

    def __init__(
        self, learner: Learner, batch: PolicyBatch, targets: Targets, rows: list[int]
    ) -> None:
        self.learner, self.batch, self.targets, self.rows = learner, batch, targets, rows
        mask = targets.loss_mask[rows]
        counts = torch.stack([mask.sum(), mask.any(-1).sum(), batch.response_mask[rows].sum()])
        reduced = learner.reduce(counts).clamp(min=1).tolist()
        self.num_tokens, self.num_replies, self.num_value_tokens = reduced
        self.policy_loss = self.value_loss = 0.0
        self.sums = torch.zeros(4, dtype=torch.float64)

    def step_policy(self) -> float:
        """One step of the policy; returns its gradient norm."""
        temperature = self.learner.config.data.sampling.temperature
        batch = self.batch
        # Rows outside the loss would cost a forward and a backward pass; a rank needs one row.
        live = [row for row in self.rows if self.targets.loss_mask[row].any()]
        return self.learner.step(
            "policy",
            batch.tokens,
            batch.lengths,
            batch.response_mask,
            live or self.rows[:1],
            self._policy_loss,
            temperature=temperature,
        )

    def step_critic(self) -> float:
        """One step of the critic; returns its gradient norm."""
        batch = self.batch
        return self.learner.step(
            "critic", batch.tokens, batch.lengths, batch.response_mask, self.rows, self._value_loss
        )

    def _policy_loss(
        self,
        flat: torch.Tensor,
        entropy: torch.Tensor,
        layout: NextTokenLayout,
        rows: Sequence[int],
    ) -> torch.Tensor:
        algorithm, targets = self.learner.config.algorithm, self.targets
        select = self._selector(layout, rows, flat.device)
        logprobs = layout.scatter(flat)
        mask = select(targets.loss_mask)
        per_token, sums = policy_objective(
            logprobs,
            select(targets.old_logprobs),
            select(targets.advantages),
            mask,
            ratio=algorithm.ratio,
            clip_low=algorithm.clip_low,
            clip_high=algorithm.clip_high,
            dual_clip=algorithm.dual_clip,
            weights=select(targets.weights),
        )
        if algorithm.kl.place == "loss" and self.learner.state.kl_coef > 0:
            reference = select(self.batch.ref_logprobs)
            penalty = kl_maths.kl_loss(logprobs, reference, algorithm.kl.estimator)
            per_token = per_token + self.learner.state.kl_coef * penalty
        if algorithm.entropy_coef > 0:
            per_token = per_token - algorithm.entropy_coef * layout.scatter(entropy)
        loss = aggregate(
            per_token,
            mask,
            algorithm.aggregation,
            num_tokens=self.num_tokens,
            num_sequences=self.num_replies,
            longest=self.learner.config.data.sampling.max_new_tokens,
        )
        self.sums += sums.cpu()
        self.policy_loss += float(loss.detach())
        return loss

    def _value_loss(
        self, flat: torch.Tensor, _: torch.Tensor, layout: NextTokenLayout, rows: Sequence[int]
    ) -> torch.Tensor:
        algorithm, targets = self.learner.config.algorithm, self.targets
        select = self._selector(layout, rows, flat.device)
        per_token = value_loss(
            layout.scatter(flat),
            select(targets.values),
            select(targets.returns),
            algorithm.value_clip,
        )
        mask = select(self.batch.response_mask)
        loss = algorithm.value_coef * masked_sum(per_token, mask) / self.num_value_tokens
        self.value_loss += float(loss.detach())
        return loss

    @staticmethod
    def _selector(layout: NextTokenLayout, rows: Sequence[int], device: torch.device):  # noqa: ANN205 - a local closure
        width = layout.shape[1]
        return lambda tensor: tensor[list(rows), :width].to(device)
