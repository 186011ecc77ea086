"""Prompt groups: which row a group is about, and its replies cut, judged and recorded.

A group is one prompt with all replies to it; its id decides its row, its order and its seeds, so a
resumed run draws the very same ones.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from random import Random

import numpy as np
import torch

from cluster.ledger import USED, LedgerRow
from configs.feedback_checks import labels_per_step
from configs.schema import RunConfig
from rl.data.stored import mismatched
from rl.feedback.selection import Criterion, worthwhile
from rl.types import Experience, Rollout


def unused_ids(used: set[int]) -> Iterator[int]:
    """0, 1, 2, … without the groups that were learned from."""
    return (group_id for group_id in itertools.count() if group_id not in used)


def prompt_index(group_id: int, num_prompts: int, seed: int) -> int:
    """Which prompt a group is about: every epoch runs through all prompts in a new order."""
    epoch, position = divmod(group_id, num_prompts)
    return int(_order(num_prompts, seed, epoch)[position])


@lru_cache(maxsize=8)
def _order(num_prompts: int, seed: int, epoch: int) -> np.ndarray:
    """Kept, since to shuffle a million takes a second."""
    order = list(range(num_prompts))
    Random(f"{seed}-{epoch}").shuffle(order)
    return np.asarray(order, dtype=np.int64)


def row_of(config: RunConfig, group_id: int, num_rows: int) -> int:
    """Which row of the data a group is about.

    With `data.sliced`, iteration t of an iterative method reads the t-th contiguous slice alone.
    """
    steps = config.algorithm.iteration_steps
    if not config.data.sliced or steps is None:
        return prompt_index(group_id, num_rows, config.data.seed)
    num_slices = -(-config.algorithm.num_steps // steps)
    iteration, position = divmod(group_id, steps * config.data.prompts_per_step)
    start, end = (num_rows * t // num_slices for t in (iteration, iteration + 1))
    return start + prompt_index(position, end - start, config.data.seed)


def renumbered(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The replies of a group from several sources, counted through."""
    return [replace(rollout, sample=index) for index, rollout in enumerate(rollouts)]


def others_behind(groups: Sequence[Sequence[Rollout]]) -> list[Rollout]:
    """For each group, the first reply of the next one behind this group's prompt."""
    following = [*groups[1:], groups[0]]
    return [mismatched(g[0], other[0]) for g, other in zip(groups, following, strict=True)]


def sample_seed(seed: int, group_id: int, num_samples: int) -> int:
    """Seed of a group's first sample; groups never share one within a run."""
    return (seed * 1_000_003 + group_id * num_samples) % 2**31


def build_experiences(
    groups: Sequence[Sequence[Rollout]],
    scores: dict[str, tuple[float, ...]],
    ref_logprobs: Sequence[np.ndarray],
    extra_references: Sequence[Sequence[float]] = (),
) -> Iterator[Experience]:
    """Cut flat scores and log-probs back into groups."""
    start = 0
    for group in groups:
        rows = slice(start, start + len(group))
        yield Experience(
            rollouts=tuple(group),
            rewards={name: values[rows] for name, values in scores.items()},
            ref_logprobs=tuple(ref_logprobs[rows]),
            attempts=1,
            extra_references=tuple(tuple(sums[rows]) for sums in extra_references),
        )
        start += len(group)


def is_constant(experience: Experience, config: RunConfig) -> bool:
    """Whether all replies of a group scored the same, so that it teaches nothing (DAPO).

    Where rewards are not summed, what decides between them is known to the learner alone; there
    the group counts as constant if no reward that is learned from tells its replies apart.
    """
    weights = {name: r.weight for name, r in config.feedback.rewards.items() if r.weight}
    judged = [
        [weight * experience.rewards[name][k] for name, weight in weights.items()]
        for k in range(len(experience.rollouts))
    ]
    is_sum = config.feedback.combine == "weighted"
    return len({sum(row) if is_sum else tuple(row) for row in judged}) == 1


def ledger_row(
    step: int, rollouts: Sequence[Rollout], status: str = USED, *, attempts: int = 1
) -> LedgerRow:
    """The row of a group at a step."""
    return LedgerRow(
        group_id=rollouts[0].group_id,
        status=status,
        step=step,
        attempts=attempts,
        engine=rollouts[0].engine,
        oldest_version=min(rollout.oldest_version for rollout in rollouts),
        newest_version=max(rollout.newest_version for rollout in rollouts),
        num_samples=len(rollouts),
        num_tokens=sum(len(rollout.tokens) for rollout in rollouts),
    )


# ---- labels --------------------------------------------------------------------------------------


def split_by_worth(
    by: Criterion,
    groups: Sequence[list[Rollout]],
    reference: Sequence[np.ndarray] | None,
    count: int,
) -> tuple[list[list[Rollout]], list[list[Rollout]]]:
    """`count` groups that are worth their labels, and the others, both in their old order.

    `reference` holds the log-probs of all replies side by side, where `by` reads them.
    """
    own = torch.tensor([[float(r.rollout_logprobs.sum()) for r in group] for group in groups])
    sums = None
    if reference is not None:
        sums = torch.tensor([float(row.sum()) for row in reference]).view(own.shape)
    chosen = set(worthwhile(by, own, sums, count).tolist())
    return (
        [group for index, group in enumerate(groups) if index in chosen],
        [group for index, group in enumerate(groups) if index not in chosen],
    )


def affordable_groups(
    config: RunConfig, labels: Mapping[int, int], step: int, own: int
) -> int | None:
    """Groups that the label budget still pays for in a step that took `own` labels so far.

    What later steps need is set aside; earlier ones took `labels`. None without a budget.
    """
    budget, each = config.feedback.label_budget, labels_per_step(config)
    if budget is None:
        return None
    before = sum(labels.get(other, each) for other in range(1, step))
    left = budget - before - own - each * (config.algorithm.num_steps - step)
    return max(0, left // (each // config.data.prompts_per_step))
