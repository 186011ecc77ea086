"""Everything of one sample: read from the one row group that holds it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.rollouts.files import files_of_step
from cluster.rollouts.groups import mean
from cluster.rollouts.ids import SampleId
from cluster.rollouts.lineage import (
    Lineage,
    Span,
    ledger_row,
    metrics_row,
    section,
    weights_of,
)
from cluster.rollouts.rows import number, whole
from cluster.rollouts.stored import named_rewards, num_tokens, stored_rows
from cluster.rollouts.tokens import token_texts
from configs.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token of a reply; what was not recorded of it is None."""

    position: int
    id: int
    text: str | None
    """None without a tokenizer that can be read."""
    rollout_logprob: float | None
    """As the engine reported it; None of stored replies, which no engine wrote."""
    old_logprob: float | None
    """The learner's, before its update; None where the loss did not read the reply."""
    ref_logprob: float | None
    """Of the reference; None in a run without one."""
    kl: float | None
    """old_logprob - ref_logprob, nats."""
    advantage: float | None
    """None of losses of whole replies."""
    version: int | None
    """Of the policy that drew it."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One reply, whole: text, tokens, judgement and lineage."""

    id: str
    prompt: str
    reply: str
    prompt_tokens: list[int]
    tokens: list[Token]
    score: float | None
    """What the learner made of the rewards."""
    rewards: Mapping[str, float | None]
    """By name; parts of a reward are named `name/part`."""
    advantage: float | None
    """Mean over tokens."""
    kl: float | None
    """Sum over tokens, nats."""
    length: int
    staleness: int | None
    finish_reason: str
    source: str
    label: float | None
    """What people said of a stored reply."""
    extra: str
    """All other columns of the data row, as JSON."""
    lineage: Lineage


def read_sample(run_dir: Path, wanted: SampleId) -> Sample:
    """One sample; raises ConfigError where the run has none of that name."""
    rows = stored_rows(run_dir, wanted.step, wanted.group_id, wanted.sample)
    if not rows:
        raise ConfigError(f"{run_dir} holds no sample {wanted}; {_what_there_is(run_dir, wanted)}")
    row = rows[0]
    tokens = _tokens(run_dir, row)
    return Sample(
        id=str(wanted),
        prompt=row.get("prompt") or "",
        reply=row.get("reply") or "",
        prompt_tokens=row.get("prompt_tokens") or [],
        tokens=tokens,
        score=number(row.get("score")),
        rewards=named_rewards(row),
        advantage=mean([token.advantage for token in tokens]),
        kl=_sum([token.kl for token in tokens]),
        length=num_tokens(row),
        staleness=_staleness(row, wanted.step),
        finish_reason=row.get("finish_reason") or "",
        source=row.get("source") or "",
        label=number(row.get("label")),
        extra=row.get("extra") or "{}",
        lineage=_lineage(run_dir, wanted, row),
    )


def _what_there_is(run_dir: Path, wanted: SampleId) -> str:
    if not files_of_step(run_dir, wanted.step):
        return f"it stored no samples of step {wanted.step}"
    others = stored_rows(run_dir, wanted.step, wanted.group_id)
    if not others:
        return f"step {wanted.step} used no group {wanted.group_id}"
    numbers = ", ".join(str(row["sample"]) for row in others)
    return f"the samples of group {wanted.group_id} are {numbers}"


# ---- parts of a sample ---------------------------------------------------------------------------


def _tokens(run_dir: Path, row: Mapping[str, Any]) -> list[Token]:
    ids = row.get("tokens") or []
    count = len(ids)
    texts = token_texts(run_dir, ids) or [None] * count
    has_reference = section(run_dir, "model").get("reference_update") != "none"
    rollout = _values(row.get("rollout_logprobs"), count, row.get("source") != "stored")
    advantages = _values(row.get("advantages"), count)
    old = row.get("old_logprobs")
    # A loss of whole replies leaves zeros where no pair or list held the reply.
    was_read = row.get("advantages") is not None or any(old or ())
    old = _values(old, count, was_read)
    reference = _values(row.get("ref_logprobs"), count, has_reference)
    versions: list[int | None] = [None] * count
    for span in row.get("versions") or []:
        for at in range(max(0, span["start"]), min(span["end"], count)):
            versions[at] = span["version"]
    return [
        Token(
            position=at,
            id=ids[at],
            text=texts[at],
            rollout_logprob=rollout[at],
            old_logprob=old[at],
            ref_logprob=reference[at],
            kl=_difference(old[at], reference[at]),
            advantage=advantages[at],
            version=versions[at],
        )
        for at in range(count)
    ]


def _values(
    values: Sequence[float] | None, count: int, is_meant: bool = True
) -> Sequence[float | None]:
    if values is None or not is_meant or len(values) != count:
        return [None] * count
    return [number(value) for value in values]


def _lineage(run_dir: Path, wanted: SampleId, row: Mapping[str, Any]) -> Lineage:
    is_policy = row.get("source") in (None, "policy")
    spans = [
        Span(
            version=span["version"],
            start=span["start"],
            end=span["end"],
            weights=weights_of(run_dir, span["version"]) if is_policy else [],
        )
        for span in row.get("versions") or []
    ]
    return Lineage(
        group_id=wanted.group_id,
        sample=wanted.sample,
        step=wanted.step,
        spans=spans,
        engine=row.get("engine") or "",
        attempts=row.get("attempts"),
        seed=row.get("seed"),
        prompt_row=whole(row.get("prompt_row")),
        data_file=section(run_dir, "data").get("train"),
        ledger=ledger_row(run_dir, wanted.step, wanted.group_id),
        metrics=metrics_row(run_dir, wanted.step),
    )


def _staleness(row: Mapping[str, Any], step: int) -> int | None:
    versions = [span["version"] for span in row.get("versions") or []]
    is_policy = row.get("source") == "policy"
    return step - 1 - min(versions) if versions and is_policy else None


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if known and len(known) == len(values) else None


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other
