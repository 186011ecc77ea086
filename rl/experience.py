"""A learner rank's experiences as padded tensors, and a whole learner step as rows for Parquet."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from rl.batching import pad_tokens, place_after
from rl.types import Experience, Rollout


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyBatch:
    """What a policy update reads; rows of one group stand side by side, groups in given order."""

    tokens: torch.Tensor
    """(B, T) prompt, reply, padding."""
    response_mask: torch.Tensor
    """(B, T) bool, on the tokens the policy sampled: on none of a greedy reply."""
    rollout_logprobs: torch.Tensor  # (B, T)
    ref_logprobs: torch.Tensor  # (B, T)
    rewards: dict[str, torch.Tensor]
    """(B,) per named reward, parts included."""
    finished: torch.Tensor
    """(B,) bool: the reply ended by itself."""
    lengths: list[int]
    """Real tokens of each row, prompt and reply."""
    group_rows: list[list[int]]
    """Rows of each group."""

    def __post_init__(self) -> None:
        shape = self.tokens.shape
        for tensor in (self.response_mask, self.rollout_logprobs, self.ref_logprobs):
            assert tensor.shape == shape, f"{tuple(tensor.shape)} beside tokens {tuple(shape)}"


def build_batch(experiences: Sequence[Experience], pad_token_id: int) -> PolicyBatch:
    """Pad the rollouts of one rank's experiences into one batch."""
    rollouts = [rollout for experience in experiences for rollout in experience.rollouts]
    starts = [len(rollout.prompt.tokens) for rollout in rollouts]
    tokens = pad_tokens(
        [np.concatenate([rollout.prompt.tokens, rollout.tokens]) for rollout in rollouts],
        pad_token_id,
    )
    width = tokens.shape[1]
    sampled = [np.full(len(rollout.tokens), not rollout.is_greedy) for rollout in rollouts]
    references = [logprobs for experience in experiences for logprobs in experience.ref_logprobs]
    rows = iter(range(len(rollouts)))
    return PolicyBatch(
        tokens=tokens,
        response_mask=place_after(starts, sampled, width, torch.bool),
        rollout_logprobs=place_after(
            starts, [rollout.rollout_logprobs for rollout in rollouts], width, torch.float32
        ),
        ref_logprobs=place_after(starts, references, width, torch.float32),
        rewards={
            name: torch.tensor(
                [score for experience in experiences for score in experience.rewards[name]],
                dtype=torch.float32,
            )
            for name in experiences[0].rewards
        },
        finished=torch.tensor([rollout.finish_reason == "stop" for rollout in rollouts]),
        lengths=[
            start + len(rollout.tokens) for start, rollout in zip(starts, rollouts, strict=True)
        ],
        group_rows=[[next(rows) for _ in experience.rollouts] for experience in experiences],
    )


EXPERIENCE_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("group_id", pa.int64()),
        ("sample", pa.int32()),
        ("prompt_row", pa.int64()),
        ("prompt", pa.string()),
        ("reply", pa.string()),
        ("prompt_tokens", pa.list_(pa.int32())),
        ("tokens", pa.list_(pa.int32())),
        ("rollout_logprobs", pa.list_(pa.float32())),
        ("old_logprobs", pa.list_(pa.float32())),
        ("ref_logprobs", pa.list_(pa.float32())),
        ("advantages", pa.list_(pa.float32())),
        (
            "versions",
            pa.list_(
                pa.struct([("version", pa.int64()), ("start", pa.int32()), ("end", pa.int32())])
            ),
        ),
        ("finish_reason", pa.string()),
        ("seed", pa.int64()),
        ("engine", pa.string()),
        ("source", pa.string()),
        ("label", pa.float64()),
        ("attempts", pa.int32()),
        ("score", pa.float64()),
        ("rewards", pa.map_(pa.string(), pa.float64())),
        ("extra", pa.string()),
        ("num_tokens", pa.int32()),
        ("advantage", pa.float32()),
        ("staleness", pa.int32()),
        ("newest_version", pa.int64()),
    ]
)
"""One row per sample used in a learner step; everything a loss or a reader could ask for.

The last four say in one number what lists say token by token, so that a million samples can be
sorted without reading a list: tokens of the reply, their mean advantage (null where there are
none), and learner updates between the oldest token and this step. `staleness` is null for replies
that the policy in training did not write; `newest_version` is that of the youngest token.
"""


def experience_table(
    step: int,
    experiences: Sequence[Experience],
    batch: PolicyBatch,
    *,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor | None,
    scores: torch.Tensor,
) -> pa.Table:
    """Rows of `EXPERIENCE_SCHEMA`; old_logprobs and advantages (B, T), scores (B,).

    `advantages` are None for losses of whole replies, and null in the table.
    """
    rows = []
    for experience in experiences:
        for index, rollout in enumerate(experience.rollouts):
            at = len(rows)
            span = slice(len(rollout.prompt.tokens), batch.lengths[at])
            own = None if advantages is None else advantages[at, span].numpy()
            rows.append(
                _sample_row(rollout)
                | {
                    "step": step,
                    "old_logprobs": old_logprobs[at, span].numpy(),
                    "ref_logprobs": experience.ref_logprobs[index],
                    "advantages": own,
                    "advantage": None if own is None or not len(own) else float(own.mean()),
                    "staleness": rollout.staleness(step),
                    "attempts": experience.attempts,
                    "score": float(scores[at]),
                    "rewards": [(name, s[index]) for name, s in experience.rewards.items()],
                }
            )
    return pa.Table.from_pylist(rows, schema=EXPERIENCE_SCHEMA)


def _sample_row(rollout: Rollout) -> dict[str, object]:
    return {
        "group_id": rollout.group_id,
        "sample": rollout.sample,
        "prompt_row": rollout.prompt.row,
        "prompt": rollout.prompt.text,
        "reply": rollout.text,
        "prompt_tokens": list(rollout.prompt.tokens),
        "tokens": rollout.tokens,
        "rollout_logprobs": rollout.rollout_logprobs,
        "versions": [
            {"version": span.version, "start": span.start, "end": span.end}
            for span in rollout.versions
        ],
        "finish_reason": rollout.finish_reason,
        "seed": rollout.seed,
        "engine": rollout.engine,
        "source": rollout.source,
        "label": rollout.label,
        "extra": json.dumps(dict(rollout.prompt.extra), default=str),
        "num_tokens": len(rollout.tokens),
        "newest_version": rollout.newest_version,
    }
