"""Replies that one engine begins and another one ends: what travels between them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rl.types import VersionSpan

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput


@dataclass(frozen=True, kw_only=True, eq=False)
class Partial:
    """The beginning of a reply that an engine had to leave to another one."""

    sample: int
    tokens: np.ndarray
    """(n,) int32; n may be 0."""
    rollout_logprobs: np.ndarray
    """(n,) float32."""
    versions: tuple[VersionSpan, ...]


def partial_of(completion: "CompletionOutput", sample: int) -> Partial:
    """A completion as far as it is."""
    assert completion.logprobs is not None
    logprobs = []
    for token, step in zip(completion.token_ids, completion.logprobs, strict=True):
        assert step is not None
        logprobs.append(step[int(token)].logprob)
    spans = completion.weight_versions or []
    return Partial(
        sample=sample,
        tokens=np.asarray(completion.token_ids, dtype=np.int32),
        rollout_logprobs=np.asarray(logprobs, dtype=np.float32),
        versions=tuple(
            VersionSpan(version=int(span.version), start=span.start, end=span.end) for span in spans
        ),
    )


def joined(begun: Partial, rest: Partial) -> Partial:
    """The beginning and what another engine wrote behind it."""
    length = len(begun.tokens)
    moved = (
        VersionSpan(version=span.version, start=span.start + length, end=span.end + length)
        for span in rest.versions
    )
    return Partial(
        sample=begun.sample,
        tokens=np.concatenate([begun.tokens, rest.tokens]),
        rollout_logprobs=np.concatenate([begun.rollout_logprobs, rest.rollout_logprobs]),
        versions=(*begun.versions, *moved),
    )


def beginnings(count: int) -> list[Partial]:
    """`count` replies that nobody has begun."""
    nothing = np.zeros(0)
    return [
        Partial(
            sample=sample,
            tokens=nothing.astype(np.int32),
            rollout_logprobs=nothing.astype(np.float32),
            versions=(),
        )
        for sample in range(count)
    ]
