"""The records that walk through a run, and the legend of tensor shapes.

Shape letters, used in every comment: `B` sequences, `T` padded length of prompt plus response, `G`
samples per prompt, `V` vocabulary, `H` hidden size. Per-token tensors are `(B, T)` and speak about
the token *at* that index: `logprobs[b, t]` is the log-probability of `tokens[b, t]` given what
precedes it, so index 0 is always 0.

A *rollout* is what sampling produced, an *experience* is a rollout with everything a loss needs. A
stage that adds knowledge returns a new type; no field waits to be filled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Metrics = dict[str, float]
Source = Literal["policy", "reference", "stored"]
"""Who wrote a reply: the policy in training, its reference, or the data set."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt of the data set, ready to be sampled from."""

    row: int
    """Row number in the source, counted from 0."""
    text: str
    """What judges read: the user's words, or the conversation so far, without the template."""
    tokens: tuple[int, ...]
    """The prompt through the policy's chat template."""
    extra: Mapping[str, Any]
    """All other columns of the row, handed to reward functions unchanged."""
    messages: tuple[Mapping[str, str], ...] = ()
    """The conversation that `tokens` hold, each message with `role` and `content`, so that a model
    with another tokenizer can read it; where empty, it is `text` as the user's only message."""

    def __post_init__(self) -> None:
        if not self.tokens:
            raise ValueError(f"row {self.row}: the prompt is empty")


@dataclass(frozen=True, kw_only=True)
class VersionSpan:
    """Response tokens `start` to `end` (exclusive) were drawn from policy `version`."""

    version: int
    start: int
    end: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollout:
    """One reply: as an engine sampled it, or as the data set holds it (`stored_rollouts`)."""

    group_id: int
    """Prompts are leased once each; the replies to one lease share its id."""
    sample: int
    """Index inside the group, 0 .. G-1."""
    prompt: Prompt
    tokens: np.ndarray
    """(n,) int32. Response tokens, with EOS where the reply ended by itself."""
    text: str
    """The reply without special tokens, cut at the first stop string."""
    rollout_logprobs: np.ndarray
    """(n,) float32. As the sampling engine reported them, at the sampling temperature; 0 where no
    engine wrote the reply."""
    versions: tuple[VersionSpan, ...]
    finish_reason: str
    """`stop` (EOS or a stop string) or `length`."""
    seed: int
    engine: str
    is_greedy: bool = False
    """Decoded without sampling: its score is a baseline, and its tokens are not trained on."""
    source: Source = "policy"
    label: float | None = None
    """What people said of a stored reply: 1 chosen, 0 rejected, or a rating."""
    is_demo: bool = False
    """A stored reply that is trusted enough to be imitated."""

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.rollout_logprobs):
            raise ValueError(
                f"group {self.group_id} sample {self.sample}: {len(self.tokens)} tokens but "
                f"{len(self.rollout_logprobs)} log-probs"
            )
        if not self.versions or self.versions[-1].end != len(self.tokens):
            raise ValueError(
                f"group {self.group_id} sample {self.sample}: version spans {self.versions} do not "
                f"cover {len(self.tokens)} tokens"
            )

    @property
    def oldest_version(self) -> int:
        """The oldest policy version that wrote a token of this reply."""
        return min(span.version for span in self.versions)

    @property
    def newest_version(self) -> int:
        """The newest policy version that wrote a token of this reply."""
        return max(span.version for span in self.versions)

    def staleness(self, step: int) -> int | None:
        """Learner updates between the oldest token and `step`; None where others wrote it."""
        return step - 1 - self.oldest_version if self.source == "policy" else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Experience:
    """One group of rollouts with scores and reference log-probs: what a policy loss learns from.

    >>> # experience.rewards["gold"][k] judges experience.rollouts[k]
    """

    rollouts: tuple[Rollout, ...]
    rewards: Mapping[str, tuple[float, ...]]
    """(G,) per named reward; parts of a reward are named `name/part` and weigh nothing."""
    ref_logprobs: tuple[np.ndarray, ...]
    """Per rollout (n,) float32, at the sampling temperature."""
    attempts: int
    """Tries it took to sample and score this group."""
    extra_references: tuple[tuple[float, ...], ...] = ()
    """(M, G): log-probability of each whole reply under each of M more references (MRPO)."""
    mismatched: "Experience | None" = None
    """Replies to other prompts put behind this one, without scores: what KTO measures how far the
    policy has moved in general on."""

    def __post_init__(self) -> None:
        ids = {rollout.group_id for rollout in self.rollouts}
        if len(ids) != 1:
            raise ValueError(f"an experience is one group, not {sorted(ids)}")
        for name, scores in self.rewards.items():
            if len(scores) != len(self.rollouts):
                raise ValueError(
                    f"group {self.group_id}: reward {name} has {len(scores)} scores for "
                    f"{len(self.rollouts)} replies"
                )
        for rollout, logprobs in zip(self.rollouts, self.ref_logprobs, strict=True):
            if len(rollout.tokens) != len(logprobs):
                raise ValueError(f"group {self.group_id}: reference log-probs do not fit the reply")

    @property
    def group_id(self) -> int:
        """The id that all rollouts of this group share."""
        return self.rollouts[0].group_id


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """A prompt and the reply to imitate."""

    prompt: Prompt
    text: str
    tokens: tuple[int, ...]
    """Reply through the chat template, ended by EOS."""


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """Two replies to one prompt; `chosen` is the better one."""

    prompt: Prompt
    chosen: str
    rejected: str
    chosen_tokens: tuple[int, ...]
    """Prompt plus reply through the chat template, ended by EOS."""
    rejected_tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ScoredReplies:
    """Several replies to one prompt, each with a score."""

    prompt: Prompt
    replies: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    """Of each reply behind the prompt, ended by EOS."""
    scores: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Rating:
    """A point-wise judgement of one reply."""

    prompt: Prompt
    reply: str
    tokens: tuple[int, ...]
    score: float
