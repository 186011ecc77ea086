import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rl.experience import EXPERIENCE_SCHEMA, build_batch, experience_table
from rl.types import Experience, Prompt, Rollout, VersionSpan


def rollout(
    group_id: int, sample: int, prompt: tuple[int, ...], tokens: list[int], finish_reason: str
) -> Rollout:
    count = len(tokens)
    return Rollout(
        group_id=group_id,
        sample=sample,
        prompt=Prompt(row=10 + group_id, text="Why?", tokens=prompt, extra={"kind": "é", "n": 1}),
        tokens=np.array(tokens, np.int32),
        text="because",
        rollout_logprobs=-np.arange(1, count + 1, dtype=np.float32),
        versions=(
            VersionSpan(version=4, start=0, end=1),
            VersionSpan(version=5, start=1, end=count),
        ),
        finish_reason=finish_reason,
        seed=sample,
        engine="engine-1",
    )


@pytest.fixture
def groups() -> list[Experience]:
    """Groups of 2 and 1: replies of 2, 3 and 1 tokens behind prompts of 2, 2 and 9."""
    first = (rollout(7, 0, (5, 6), [8, 1], "stop"), rollout(7, 1, (5, 6), [8, 9, 10], "length"))
    second = (rollout(3, 0, tuple(range(20, 29)), [1], "stop"),)
    return [
        Experience(
            rollouts=rollouts,
            rewards={"rm": scores, "rm/tone": scores},
            ref_logprobs=tuple(np.full(len(r.tokens), -0.5, np.float32) for r in rollouts),
            attempts=2,
        )
        for rollouts, scores in ((first, (0.25, -1.0)), (second, (3.0,)))
    ]


def test_rows_are_prompt_reply_and_padding(groups):
    batch = build_batch(groups, pad_token_id=0)
    assert batch.tokens.shape == (3, 16)
    assert batch.tokens[0].tolist() == [5, 6, 8, 1] + [0] * 12
    assert batch.tokens[1].tolist() == [5, 6, 8, 9, 10] + [0] * 11
    assert batch.tokens[2].tolist() == [*range(20, 29), 1] + [0] * 6
    assert batch.lengths == [4, 5, 10]
    assert batch.group_rows == [[0, 1], [2]]
    assert batch.finished.tolist() == [True, False, True]


def test_per_token_fields_stand_at_their_tokens(groups):
    batch = build_batch(groups, pad_token_id=0)
    assert [mask.nonzero().flatten().tolist() for mask in batch.response_mask] == [
        [2, 3],
        [2, 3, 4],
        [9],
    ]
    assert batch.rollout_logprobs[1].tolist() == [0, 0, -1, -2, -3] + [0] * 11
    assert batch.rollout_logprobs[2].tolist() == [0] * 9 + [-1] + [0] * 6
    assert torch.equal(batch.ref_logprobs != 0, batch.response_mask)
    assert batch.rewards["rm"].tolist() == [0.25, -1.0, 3.0]
    assert batch.rewards["rm/tone"].tolist() == [0.25, -1.0, 3.0]


def test_a_padding_token_inside_a_reply_is_part_of_it():
    reply = rollout(0, 0, (5,), [0, 0], "length")
    group = Experience(
        rollouts=(reply,), rewards={}, ref_logprobs=(np.zeros(2, np.float32),), attempts=1
    )
    batch = build_batch([group], pad_token_id=0)
    assert batch.response_mask[0, :4].tolist() == [False, True, True, False]
    assert batch.lengths == [3]


def test_a_greedy_reply_is_a_row_without_tokens_to_train_on(groups):
    first = groups[0]
    greedy = replace(first.rollouts[1], is_greedy=True)
    batch = build_batch(
        [replace(first, rollouts=(first.rollouts[0], greedy)), groups[1]], pad_token_id=0
    )
    assert batch.response_mask.any(-1).tolist() == [True, False, True]
    assert batch.group_rows == [[0, 1], [2]]
    assert batch.rewards["rm"].tolist() == [0.25, -1.0, 3.0]
    assert batch.lengths == [4, 5, 10]


def test_a_step_reads_back_from_parquet_as_it_was(groups, tmp_path):
    batch = build_batch(groups, pad_token_id=0)
    shape = batch.tokens.shape
    places = torch.arange(shape[0] * shape[1], dtype=torch.float32).view(shape)
    table = experience_table(
        12,
        groups,
        batch,
        old_logprobs=places,
        advantages=-places,
        scores=torch.tensor([1.0, 2.0, 3.0]),
    )
    assert table.schema == EXPERIENCE_SCHEMA
    pq.write_table(table, tmp_path / "step.parquet")
    rows = pq.read_table(tmp_path / "step.parquet").to_pylist()

    assert [row["step"] for row in rows] == [12, 12, 12]
    assert [(row["group_id"], row["sample"]) for row in rows] == [(7, 0), (7, 1), (3, 0)]
    assert [row["prompt_row"] for row in rows] == [17, 17, 13]
    assert [row["attempts"] for row in rows] == [2, 2, 2]
    assert [row["score"] for row in rows] == [1.0, 2.0, 3.0]
    second = rows[1]
    assert second["prompt_tokens"] == [5, 6]
    assert second["tokens"] == [8, 9, 10]
    assert second["rollout_logprobs"] == [-1.0, -2.0, -3.0]
    assert second["ref_logprobs"] == [-0.5, -0.5, -0.5]
    assert second["old_logprobs"] == [18.0, 19.0, 20.0]  # row 1 of 16 columns, from column 2 on
    assert second["advantages"] == [-18.0, -19.0, -20.0]
    assert second["versions"] == [
        {"version": 4, "start": 0, "end": 1},
        {"version": 5, "start": 1, "end": 3},
    ]
    assert dict(second["rewards"]) == {"rm": -1.0, "rm/tone": -1.0}
    assert (second["prompt"], second["reply"]) == ("Why?", "because")
    assert (second["finish_reason"], second["seed"], second["engine"]) == ("length", 1, "engine-1")
    assert json.loads(second["extra"]) == {"kind": "é", "n": 1}
    # The same in single numbers: version 4 is the oldest, and step 12 starts from version 11.
    assert [row["num_tokens"] for row in rows] == [2, 3, 1]
    assert [row["advantage"] for row in rows] == [-2.5, -19.0, -41.0]
    assert [row["staleness"] for row in rows] == [7, 7, 7]
    assert [row["newest_version"] for row in rows] == [5, 5, 5]


def test_what_a_loss_of_whole_replies_and_other_authors_leave_open_is_null(groups):
    first = groups[0]
    stored = replace(first.rollouts[1], source="stored")
    groups[0] = replace(first, rollouts=(first.rollouts[0], stored))
    batch = build_batch(groups, pad_token_id=0)
    table = experience_table(
        12, groups, batch, old_logprobs=torch.zeros(batch.tokens.shape), advantages=None,
        scores=torch.zeros(3),
    )  # fmt: skip
    assert table["advantages"].null_count == table["advantage"].null_count == 3
    assert table["staleness"].to_pylist() == [7, None, 7]
