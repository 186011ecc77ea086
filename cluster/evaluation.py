"""Answering held-out prompts and judging the answers: before, after, and policy against policy."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from actors.rollout import SampleRequest
from cluster.fleet import Fleet
from cluster.scoring import ScoringGroup, merge_scores
from configs.schema import GROUP_WISE, FeedbackConfig
from rl.types import Prompt, Rollout

SEED_OFFSET = 1_000_000_000
"""Evaluation draws from seeds of its own, so that it never repeats a training sample."""


@dataclass(frozen=True, kw_only=True)
class JudgedReply:
    """A reply to a held-out prompt and what every judge said of it."""

    prompt: str
    reply: str
    num_tokens: int
    finish_reason: str
    rewards: dict[str, float]
    log_ratio: float | None = None
    """Nats by which the policy finds it likelier than the reference does; its mean over replies
    estimates their KL. None without a reference that stays, or where no sampling was done."""


async def answer_and_judge(
    fleet: Fleet,
    rewards: Mapping[str, ScoringGroup],
    prompts: Sequence[Prompt],
    seed: int,
    reference: ScoringGroup | None = None,
) -> list[JudgedReply]:
    """One reply to each prompt, sampled with the run's settings, in the order of the prompts."""
    requests = [
        SampleRequest(
            group_id=-1 - index,
            prompt=prompt,
            num_samples=1,
            seed=(seed + SEED_OFFSET + index) % 2**31,
        )
        for index, prompt in enumerate(prompts)
    ]
    rollouts = [group[0] for group in await fleet.generate(requests)]
    results = await asyncio.gather(*(group.score(rollouts) for group in rewards.values()))
    scores = {name: s for parts in results for name, s in merge_scores(parts).items()}
    replies = judged_replies(rollouts, scores)
    if reference is None:
        return replies
    logprobs = [row for part in await reference.score(rollouts) for row in part]
    return [
        replace(reply, log_ratio=float(rollout.rollout_logprobs.sum() - row.sum()))
        for reply, rollout, row in zip(replies, rollouts, logprobs, strict=True)
    ]


def judged_replies(
    rollouts: Sequence[Rollout], scores: Mapping[str, Sequence[float]]
) -> list[JudgedReply]:
    """Replies with their scores by name, each a score per reply."""
    return [
        JudgedReply(
            prompt=rollout.prompt.text,
            reply=rollout.text,
            num_tokens=len(rollout.tokens),
            finish_reason=rollout.finish_reason,
            rewards={name: values[index] for name, values in scores.items()},
        )
        for index, rollout in enumerate(rollouts)
    ]


def means(replies: Sequence[JudgedReply]) -> dict[str, float]:
    """Mean of every named reward and part."""
    return {
        name: float(np.mean([reply.rewards[name] for reply in replies]))
        for name in replies[0].rewards
    }


def judges_alone(kind: str) -> bool:
    """Whether a kind of reward can score one fresh reply to a prompt, with no other beside it."""
    return kind != "label" and kind not in GROUP_WISE


def with_total(replies: Sequence[JudgedReply], feedback: FeedbackConfig) -> list[JudgedReply]:
    """The same replies with the score that training saw as the reward `total`.

    Without it where there is none: where a label or a comparison counts, or where multipliers are
    known to the learner alone.
    """
    rewards = feedback.rewards.values()
    if feedback.one_shot or any(r.weight and not judges_alone(r.kind) for r in rewards):
        return list(replies)
    totals = _totals(replies, feedback)
    return [
        replace(reply, rewards=reply.rewards | {"total": total})
        for reply, total in zip(replies, totals, strict=True)
    ]


def _totals(replies: Sequence[JudgedReply], feedback: FeedbackConfig) -> list[float]:
    totals = _combined(replies, feedback)
    for index, reply in enumerate(replies):
        if reply.finish_reason != "stop":
            totals[index] -= feedback.missing_eos_penalty
    limit = feedback.clip
    return totals if limit is None else [max(-limit, min(limit, total)) for total in totals]


def _combined(replies: Sequence[JudgedReply], feedback: FeedbackConfig) -> list[float]:
    """What `actors.scores.combine` makes of the rewards, on plain numbers."""
    weights = {name: r.weight for name, r in feedback.rewards.items() if r.weight}
    columns = {
        name: np.array([weight * reply.rewards[name] for reply in replies])
        for name, weight in weights.items()
    }
    match feedback.combine:
        case "weighted":
            totals = sum(columns.values(), np.zeros(len(replies)))
        case "minimum":
            totals = np.min(list(columns.values()), axis=0)
        case "group_minimum":
            totals = min(columns.values(), key=np.mean)
        case "lagrangian":
            totals = np.zeros(len(replies))
            for name, column in columns.items():
                bound = feedback.bounds.get(name)
                pull = feedback.multipliers.get(name, 1.0)
                totals = totals + (column if bound is None else pull * (column - bound))
    return totals.tolist()


def standard_errors(
    before: Sequence[JudgedReply], after: Sequence[JudgedReply]
) -> dict[str, float]:
    """Of the mean paired difference of every reward; replies answer the same prompts in order."""
    errors = {}
    for name in before[0].rewards:
        differences = [
            new.rewards[name] - old.rewards[name] for old, new in zip(before, after, strict=True)
        ]
        errors[name] = float(np.std(differences) / np.sqrt(max(len(differences) - 1, 1)))
    return errors
