"""The scores that a learner step learns from: named rewards put together, over all ranks."""

import torch
import torch.distributed as dist

from actors.learner import Learner
from rl import rewards as reward_maths
from rl.experience import PolicyBatch
from rl.masking import moment_sums
from rl.types import Metrics


def combined_scores(learner: Learner, batch: PolicyBatch) -> tuple[torch.Tensor, Metrics]:
    """(B,) combined scores, and metrics of every named reward and part, of sampled replies only."""
    config = learner.config
    feedback, is_sampled = config.feedback, batch.response_mask.any(-1)
    weights = {name: reward.weight for name, reward in feedback.rewards.items()}
    scores = reward_maths.combine_rewards(batch.rewards, weights)
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
    metrics |= _quantiles(learner, scores[is_sampled])
    equal = [float(scores[rows].max() == scores[rows].min()) for rows in batch.group_rows]
    flat = learner.reduce(torch.tensor([sum(equal), float(len(equal))]))
    metrics["zero_std_groups"] = float(flat[0] / flat[1])
    if feedback.normalise:
        moments = learner.state.scores.updated(sums[0])
        learner.remember_scores(moments)
        scores = moments.normalise(scores)
    return scores, metrics


def _quantiles(learner: Learner, scores: torch.Tensor) -> Metrics:
    """p10, p50 and p90 over all ranks."""
    gathered: list[list[float]] = [[] for _ in range(learner.world_size)]
    dist.all_gather_object(gathered, scores.tolist())
    everything = torch.tensor([score for part in gathered for score in part])
    levels = torch.quantile(everything, torch.tensor([0.1, 0.5, 0.9])).tolist()
    return {f"reward/total/p{p}": level for p, level in zip((10, 50, 90), levels, strict=True)}
