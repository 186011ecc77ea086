"""Samples as rows of plain values, as failure bundles keep them."""

from collections.abc import Iterable
from typing import Any

from rl.types import Rollout


def rollout_rows(rollouts: Iterable[Rollout]) -> list[dict[str, Any]]:
    """Which group, prompt and reply each sample is, and where it came from; one row a sample."""
    return [
        {
            "group_id": rollout.group_id,
            "sample": rollout.sample,
            "prompt_row": rollout.prompt.row,
            "prompt": rollout.prompt.text,
            "reply": rollout.text,
            "tokens": rollout.tokens.tolist(),
            "finish_reason": rollout.finish_reason,
            "engine": rollout.engine,
            "versions": [[span.version, span.start, span.end] for span in rollout.versions],
        }
        for rollout in rollouts
    ]
