"""Stored replies as rollouts: what the data set says, in the form in which samples arrive."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rl.types import (
    Demonstration,
    PreferencePair,
    Prompt,
    Rating,
    Rollout,
    ScoredReplies,
    VersionSpan,
)

StoredItem = Demonstration | PreferencePair | Rating | ScoredReplies
Item = Prompt | StoredItem
"""A row of the training data: a prompt alone, or with replies to it."""

_Reply = tuple[str, Sequence[int], float, bool]
"""Text, tokens behind the prompt, label, whether it is a demonstration."""


def prompt_of(item: Item) -> Prompt:
    """The prompt that a row is about."""
    return item if isinstance(item, Prompt) else item.prompt


def stored_rollouts(
    group_id: int, item: StoredItem, version: int, *, demo_score: float | None = None
) -> list[Rollout]:
    """A row's replies, the chosen one of a pair first, as if written at `version`.

    Labels are 1 and 0 for a pair, the scores of ratings and lists, and 1 for a demonstration.
    Chosen replies and demonstrations are marked as such, and what is rated at least `demo_score`
    or whose column `is_demo` says so.
    """
    return [
        Rollout(
            group_id=group_id,
            sample=index,
            prompt=item.prompt,
            tokens=np.asarray(tokens, dtype=np.int32),
            text=text,
            rollout_logprobs=np.zeros(len(tokens), dtype=np.float32),
            versions=(VersionSpan(version=version, start=0, end=len(tokens)),),
            finish_reason="stop",
            seed=0,
            engine="stored",
            source="stored",
            label=label,
            is_demo=is_demo,
        )
        for index, (text, tokens, label, is_demo) in enumerate(_replies(item, demo_score))
    ]


def _replies(item: StoredItem, demo_score: float | None) -> list[_Reply]:
    start = len(item.prompt.tokens)
    match item:
        case PreferencePair():
            return [
                (item.chosen, item.chosen_tokens[start:], 1.0, True),
                (item.rejected, item.rejected_tokens[start:], 0.0, False),
            ]
        case Rating():
            is_demo = bool(item.prompt.extra.get("is_demo", False))
            is_demo = is_demo or (demo_score is not None and item.score >= demo_score)
            return [(item.reply, item.tokens[start:], item.score, is_demo)]
        case ScoredReplies():
            rows = zip(item.replies, item.tokens, item.scores, strict=True)
            return [
                (text, tokens, score, demo_score is not None and score >= demo_score)
                for text, tokens, score in rows
            ]
        case Demonstration():
            return [(item.text, item.tokens, 1.0, True)]


def mismatched(rollout: Rollout, other: Rollout) -> Rollout:
    """`other`'s reply put behind `rollout`'s prompt: says how far the policy moved in general."""
    return replace(
        other,
        group_id=rollout.group_id,
        prompt=rollout.prompt,
        label=None,
        is_demo=False,
    )
