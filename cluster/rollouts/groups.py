"""A prompt with all replies to it: as a list shows it, and whole."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from cluster.rollouts.ids import SampleId
from cluster.rollouts.lineage import ledger_row, section
from cluster.rollouts.rows import Row, number, whole
from cluster.rollouts.stored import named_rewards, num_tokens, stored_rows
from configs.errors import ConfigError
from rl.pairing import Pairing, group_rng, pairs

COMPARING = ("given", "best_worst", "all_pairs", "best_vs_random")
"""Values of `data.pairing` that make pairs of replies."""


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """A group as a list shows it."""

    step: int
    group_id: int
    prompt_row: int | None
    prompt: str
    """At most rows.EXCERPT letters."""
    samples: list[str]
    """Their ids, best first."""
    best: float | None
    mean: float | None
    worst: float | None
    rewards: Mapping[str, float | None]
    """By name, mean over the replies."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One reply of a group."""

    id: str
    sample: int
    reply: str
    score: float | None
    advantage: float | None
    """Mean over tokens."""
    length: int
    finish_reason: str
    source: str
    engine: str
    versions: list[int]
    """That wrote it, in their order."""
    label: float | None
    rewards: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Group:
    """A prompt with all replies to it."""

    group_id: int
    step: int
    prompt_row: int | None
    prompt: str
    replies: list[Reply]
    """Best first; equals in their own order."""
    pairing: str | None
    """`data.pairing` of the run, where its loss compares replies."""
    beats: list[tuple[int, int]]
    """(chosen, rejected): numbers of the samples that a pair loss compared."""
    ledger: Mapping[str, Any] | None


def group_rows(rows: Sequence[Row]) -> list[GroupRow]:
    """The groups of these rows, each where its first row stands."""
    found: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in rows:
        found[row.step, row.group_id].append(row)
    return [_group_row(sorted(own, key=lambda row: -_known(row.score))) for own in found.values()]


def _group_row(rows: Sequence[Row]) -> GroupRow:
    """`rows`: best first."""
    first = rows[0]
    return GroupRow(
        step=first.step,
        group_id=first.group_id,
        prompt_row=first.prompt_row,
        prompt=first.prompt,
        samples=[row.id for row in rows],
        best=first.score,
        mean=mean([row.score for row in rows]),
        worst=rows[-1].score,
        rewards={name: mean([row.rewards.get(name) for row in rows]) for name in first.rewards},
    )


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are known; None of none."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def read_group(run_dir: Path, step: int, group_id: int) -> Group:
    """All replies of a group that a step used; raises ConfigError where it used no such group."""
    rows = sorted(stored_rows(run_dir, step, group_id), key=lambda row: row["sample"])
    if not rows:
        raise ConfigError(f"step {step} of {run_dir} used no group {group_id}")
    pairing = section(run_dir, "data").get("pairing")
    replies = [_reply(row, step) for row in rows]
    return Group(
        group_id=group_id,
        step=step,
        prompt_row=whole(rows[0].get("prompt_row")),
        prompt=rows[0].get("prompt") or "",
        replies=sorted(replies, key=lambda reply: -_known(reply.score)),
        pairing=pairing if pairing not in (None, "none") else None,
        beats=_beats(run_dir, group_id, replies) if pairing in COMPARING else [],
        ledger=ledger_row(run_dir, step, group_id),
    )


def _reply(row: Mapping[str, Any], step: int) -> Reply:
    wanted = SampleId(step=step, group_id=row["group_id"], sample=row["sample"])
    return Reply(
        id=str(wanted),
        sample=row["sample"],
        reply=row.get("reply") or "",
        score=number(row.get("score")),
        advantage=mean(row.get("advantages") or []),
        length=num_tokens(row),
        finish_reason=row.get("finish_reason") or "",
        source=row.get("source") or "",
        engine=row.get("engine") or "",
        versions=[span["version"] for span in row.get("versions") or []],
        label=number(row.get("label")),
        rewards=named_rewards(row),
    )


def _known(score: float | None) -> float:
    return -math.inf if score is None else score


def _beats(run_dir: Path, group_id: int, replies: Sequence[Reply]) -> list[tuple[int, int]]:
    """The pairs that the learner made: its own rule, seed and scores, which the file holds whole.

    What was left out because a curating reward contradicted it is left out here.
    """
    scores = [reply.score for reply in replies if reply.score is not None]
    if len(scores) < max(2, len(replies)):
        return []
    data, feedback = section(run_dir, "data"), section(run_dir, "feedback")
    texts, rng = [reply.reply for reply in replies], group_rng(data.get("seed", 0), group_id)
    found = pairs(scores, texts, cast(Pairing, data["pairing"]), rng)
    if (name := feedback.get("curate_by")) is not None:
        margin = np.float32(feedback.get("curate_margin") or 0.0)
        proxy = [np.float32(_known(reply.rewards.get(name))) for reply in replies]
        found = [(a, b) for a, b in found if proxy[a] - proxy[b] > margin]
    return [(replies[a].sample, replies[b].sample) for a, b in found]
