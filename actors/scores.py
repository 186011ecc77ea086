"""The scores that a learner step learns from: named rewards put together, over all ranks."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from configs.feedback_checks import kl_strength
from configs.schema import FeedbackConfig
from rl import rewards as reward_maths
from rl.experience import PolicyBatch
from rl.feedback.combine import lagrangian, minimum_per_group, minimum_per_sample
from rl.feedback.dual import one_shot_multipliers
from rl.masking import moment_sums
from rl.types import Metrics

if TYPE_CHECKING:  # it loads DeepSpeed, which putting scores together does not need
    from actors.learner import Learner

logger = logging.getLogger(__name__)

Rewards = Mapping[str, torch.Tensor]
"""(B,) per name, parts included."""
Reduce = Callable[[torch.Tensor], torch.Tensor]
"""Sums over all ranks."""


def combined_scores(learner: "Learner", batch: PolicyBatch) -> tuple[torch.Tensor, Metrics]:
    """(B,) combined scores, and metrics of every named reward and part, of sampled replies only."""
    config = learner.config
    feedback, is_sampled = config.feedback, batch.response_mask.any(-1)
    multipliers = _multipliers(learner, batch, is_sampled)
    scores, told = combine(batch.rewards, feedback, is_sampled, learner.reduce, multipliers)
    scores = reward_maths.penalise_missing_eos(scores, batch.finished, feedback.missing_eos_penalty)
    if feedback.overlong_buffer is not None:
        scores = reward_maths.penalise_overlong(
            scores,
            batch.response_mask.sum(-1),
            config.data.sampling.max_new_tokens,
            feedback.overlong_buffer,
        )
    scores = reward_maths.clip_scores(scores, feedback.clip)
    names = list(batch.rewards)
    sums = torch.stack(
        [moment_sums(values, is_sampled) for values in [scores, *batch.rewards.values()]]
    )
    sums = learner.reduce(sums)
    means = (sums[:, 1] / sums[:, 0]).tolist()
    metrics = {f"reward/{name}/mean": mean for name, mean in zip(names, means[1:], strict=True)}
    variance = sums[0, 2] / sums[0, 0] - (sums[0, 1] / sums[0, 0]) ** 2
    metrics |= {"reward/total/mean": means[0], "reward/total/std": max(float(variance), 0) ** 0.5}
    named = {"total": scores, **batch.rewards}
    metrics |= _quantiles(learner, {name: own[is_sampled] for name, own in named.items()})
    equal = [float(scores[rows].max() == scores[rows].min()) for rows in batch.group_rows]
    flat = learner.reduce(torch.tensor([sum(equal), float(len(equal))]))
    metrics["zero_std_groups"] = float(flat[0] / flat[1])
    metrics |= told
    if feedback.normalise:
        moments = learner.state.scores.updated(sums[0])
        learner.remember_scores(moments)
        scores = moments.normalise(scores)
    return scores, metrics


def combine(
    rewards: Rewards,
    feedback: FeedbackConfig,
    is_sampled: torch.Tensor,
    reduce: Reduce,
    multipliers: Mapping[str, float],
) -> tuple[torch.Tensor, Metrics]:
    """(B,) named rewards as one score, and metrics `feedback/...` of what decided.

    Metrics, and the means that choose a group, are of the replies (B,) bool that were sampled.
    """
    weights = {name: reward.weight for name, reward in feedback.rewards.items()}
    weighted = {name: weight * rewards[name] for name, weight in weights.items() if weight}
    match feedback.combine:
        case "weighted":
            return reward_maths.combine_rewards(rewards, weights), {}
        case "minimum":
            lowest = torch.stack(list(weighted.values())).argmin(0)  # (B,)
            shares = [moment_sums((lowest == k).float(), is_sampled) for k in range(len(weighted))]
            means = _means(shares, reduce)
            told = {f"feedback/decides/{n}": m for n, m in zip(weighted, means, strict=True)}
            return minimum_per_sample(weighted), told
        case "group_minimum":
            sums = [moment_sums(values, is_sampled) for values in weighted.values()]
            means = dict(zip(weighted, _means(sums, reduce), strict=True))
            worst = min(means, key=means.__getitem__)
            told = {f"feedback/decides/{name}": float(name == worst) for name in means}
            return minimum_per_group(weighted, means), told
        case "lagrangian":
            constraints = {name: rewards[name] for name in feedback.bounds}
            sums = [moment_sums(values, is_sampled) for values in constraints.values()]
            told = {f"feedback/multiplier/{name}": multipliers[name] for name in constraints}
            for name, mean in zip(constraints, _means(sums, reduce), strict=True):
                told[f"feedback/slack/{name}"] = mean - feedback.bounds[name]
            objective = _objective(rewards, feedback)
            return lagrangian(objective, constraints, multipliers, feedback.bounds), told


def solve_multipliers(
    groups: Sequence[Rewards], feedback: FeedbackConfig, beta: float
) -> dict[str, float]:
    """Multipliers from groups of rewards (G,) each, all drawn from the reference policy.

    Groups that lack a reply are left out: the dual is solved on a matrix.
    """
    size = max(len(next(iter(group.values()))) for group in groups)
    whole = [group for group in groups if len(next(iter(group.values()))) == size]
    stacked = {name: torch.stack([group[name] for group in whole]) for name in feedback.rewards}
    constraints = {name: stacked[name] for name in feedback.bounds}
    return one_shot_multipliers(
        _objective(stacked, feedback), constraints, feedback.bounds, beta=beta
    )


def _objective(rewards: Rewards, feedback: FeedbackConfig) -> torch.Tensor:
    """The weighted sum of rewards without a bound, of any shape."""
    free = {n: r.weight for n, r in feedback.rewards.items() if n not in feedback.bounds}
    return reward_maths.combine_rewards({name: rewards[name] for name in free}, free)


def _means(sums: Sequence[torch.Tensor], reduce: Reduce) -> list[float]:
    """From `moment_sums` of this rank, means over all ranks."""
    reduced = reduce(torch.stack(list(sums)))
    return (reduced[:, 1] / reduced[:, 0]).tolist()


def _multipliers(
    learner: "Learner", batch: PolicyBatch, is_sampled: torch.Tensor
) -> Mapping[str, float]:
    """Those of the configuration, or those solved in the first step, which this may be."""
    feedback = learner.config.feedback
    if not feedback.one_shot:
        return feedback.multipliers
    if learner.state.multipliers is None:
        own = []
        for rows in batch.group_rows:
            kept = torch.tensor([row for row in rows if is_sampled[row]], dtype=torch.long)
            own.append({name: batch.rewards[name][kept] for name in feedback.rewards})
        gathered: list[Any] = [None] * learner.world_size
        dist.all_gather_object(gathered, own)
        groups = [group for part in gathered for group in part]
        beta = kl_strength(learner.config)
        solved = solve_multipliers(groups, feedback, beta)
        logger.info("multipliers solved on %d groups: %s", len(groups), solved)
        learner.remember_multipliers(solved)
    assert learner.state.multipliers is not None
    return learner.state.multipliers


def _quantiles(learner: "Learner", scores: Mapping[str, torch.Tensor]) -> Metrics:
    """p10, p50 and p90 of (B,) scores by name, over the replies of all ranks."""
    gathered: list[list[list[float]]] = [[] for _ in range(learner.world_size)]
    own = torch.stack([values.float() for values in scores.values()])
    dist.all_gather_object(gathered, own.tolist())
    everything = torch.cat([torch.tensor(part) for part in gathered], dim=1)  # (names, replies)
    levels = torch.quantile(everything, torch.tensor([0.1, 0.5, 0.9]), dim=1).T.tolist()
    return {
        f"reward/{name}/p{p}": level
        for name, row in zip(scores, levels, strict=True)
        for p, level in zip((10, 50, 90), row, strict=True)
    }
