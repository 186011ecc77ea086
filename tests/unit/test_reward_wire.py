"""Tables on the wire of a reward service: what goes in comes out, and what is wrong is named."""

import json
import math
import pickle
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import pytest

from cluster.serve.judging import judge_together
from cluster.serve.wire import (
    ARROW,
    JSON,
    ScoreRequest,
    WireError,
    checked_scores,
    decode_request,
    decode_scores,
    encode_request,
    encode_scores,
)
from rl.types import Prompt, Rollout, VersionSpan


def rollout(text: str, group: int = 0, **extra: Any) -> Rollout:
    return Rollout(
        group_id=group,
        sample=0,
        prompt=Prompt(
            row=4,
            text=f"prompt {group}",
            tokens=(5, 6),
            extra=extra,
            messages=({"role": "user", "content": f"prompt {group}"},),
        ),
        tokens=np.asarray([7, 8], dtype=np.int32),
        text=text,
        rollout_logprobs=np.zeros(2, dtype=np.float32),
        versions=(VersionSpan(version=3, start=0, end=2),),
        finish_reason="stop",
        seed=0,
        engine="engine-0",
        label=0.5,
    )


def test_a_run_s_request_arrives_with_everything_that_judges_read() -> None:
    sent = [rollout("ä", 12, place={"x": [1, None]}), rollout("b", 12), rollout("c", 99, n=2.5)]
    got = decode_request(encode_request(["rm", "style"], sent), ARROW)
    assert got.rewards == ("rm", "style")
    assert [r.group_id for r in got.rollouts] == [0, 0, 1]
    for old, new in zip(sent, got.rollouts, strict=True):
        assert (new.text, new.label) == (old.text, old.label)
        assert new.tokens.tolist() == [7, 8]
        for field in ("row", "text", "tokens", "messages"):
            assert getattr(new.prompt, field) == getattr(old.prompt, field)
        assert dict(new.prompt.extra) == dict(old.prompt.extra)


def test_json_needs_no_more_than_texts_and_groups_replies_to_equal_prompts() -> None:
    replies = [{"prompt": p, "reply": "x"} for p in ("one", "two", "one")]
    got = decode_request(json.dumps({"rewards": ["rm"], "replies": replies}).encode(), JSON)
    assert [r.group_id for r in got.rollouts] == [0, 1, 0]
    assert [r.prompt.row for r in got.rollouts] == [0, 1, 2]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b'{"rewards": ["rm"]}', "should be"),
        (b'{"rewards": "rm", "replies": []}', "list of names"),
        (b'{"rewards": [], "replies": []}', "rewards is empty"),
        (b'{"rewards": ["rm"], "replies": []}', "replies is empty"),
        (b'{"rewards": ["rm"], "replies": [{"prompt": "a"}]}', "replies.0.reply: Field required"),
        (b'{"rewards": ["rm"], "replies": [{"prompt": 1, "reply": "b"}]}', "replies.0.prompt"),
        (
            b'{"rewards": ["rm"], "replies": [{"prompt": "a", "reply": "b", "lable": 1}]}',
            "replies.0.lable: Extra",
        ),
    ],
)
def test_a_wrong_request_is_refused_in_one_line_that_names_its_place(
    body: bytes, message: str
) -> None:
    with pytest.raises(WireError) as refusal:
        decode_request(body, JSON)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_bytes_that_are_no_arrow_stream_are_refused_and_pickles_are_not_read() -> None:
    whole = encode_request(["rm"], [rollout("a")])
    for body in (b"", b"nonsense", whole[: len(whole) // 2], pickle.dumps([1])):
        with pytest.raises(WireError, match="not an Arrow stream"):
            decode_request(body, ARROW)
    with pytest.raises(WireError, match="content type application/x-pickle"):
        decode_request(pickle.dumps([1]), "application/x-pickle")


def test_an_arrow_table_with_a_buffer_that_lies_is_refused() -> None:
    body = encode_request(["rm"], [rollout("0123456789" * 6 + "x")])
    offsets = np.asarray([0, 61], dtype=np.int32).tobytes()
    lie = np.asarray([0, 1 << 20], dtype=np.int32).tobytes()
    before, found, after = body.rpartition(offsets)  # the header has like bytes before the buffer
    assert found
    with pytest.raises(WireError, match="not an Arrow stream"):
        decode_request(before + lie + after, ARROW)


def test_a_column_that_cannot_travel_is_named() -> None:
    with pytest.raises(WireError, match="row 4: column day is a date"):
        encode_request(["rm"], [rollout("a", ok=1, day=date(2020, 1, 1))])


@pytest.mark.parametrize("form", [JSON, ARROW])
def test_scores_come_back_exactly(form: str) -> None:
    scores = {"rm": (0.1, -1e300), "rm/length": (1 / 3, 0.0)}
    got = checked_scores(
        decode_scores(encode_scores(scores, form), form), ["rm"], [rollout("a"), rollout("b")]
    )
    assert got == scores


@pytest.mark.parametrize("form", [JSON, ARROW])
@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"rm": (0.5, math.nan)}, "reward rm returned nan for reply 1"),
        ({"rm": (math.inf, 0.5)}, "reward rm returned inf for reply 0"),
        ({"rm": (0.5,)}, "1 scores for 2 replies"),
        ({"style": (0.5, 0.5)}, "no scores of reward rm"),
        ({"rm": (0.5, 0.5), "style": (0.5, 0.5)}, "style, which nobody asked for"),
        ({"rm": (0.5, 0.5), "rm/part": (0.5, math.nan)}, "reward rm/part returned nan"),
    ],
)
def test_a_lying_answer_is_never_a_score(form: str, scores: dict, message: str) -> None:
    lengths = {len(values) for values in scores.values()}
    assert len(lengths) == 1, "an Arrow table has columns of one length"
    sent = decode_scores(encode_scores(scores, form), form)
    with pytest.raises(ValueError, match=message):
        checked_scores(sent, ["rm"], [rollout("a"), rollout("b")])


@pytest.mark.parametrize(
    "answer",
    [b"ok", b"[1]", b'{"scores": [1]}', b'{"scores": {"rm": 1}}', b'{"scores": {"rm": [null]}}'],
)
def test_an_answer_that_is_no_table_is_named(answer: bytes) -> None:
    with pytest.raises(ValueError, match=r"not|None"):
        checked_scores(decode_scores(answer, JSON), ["rm"], [rollout("a")])


class Counting:
    """Scores a reply by how many of its group came before it, and refuses `bad`."""

    def __init__(self) -> None:
        self.passes: list[int] = []

    def score(self, rollouts: Any) -> dict[str, tuple[float, ...]]:
        self.passes.append(len(rollouts))
        if any(r.text == "bad" for r in rollouts):
            raise ValueError("reward rm: bad")
        seen: dict[int, int] = {}
        scores = []
        for r in rollouts:
            scores.append(float(seen.get(r.group_id, 0)))
            seen[r.group_id] = seen.get(r.group_id, 0) + 1
        return {"rm": tuple(scores)}


def request(*texts: str) -> ScoreRequest:
    body = encode_request(["rm"], [rollout(text, 5) for text in texts])
    return decode_request(body, ARROW)


def test_requests_are_judged_in_one_pass_and_groups_of_two_runs_never_meet() -> None:
    judge = Counting()
    other = replace(request("x"), rewards=("style",))
    got = judge_together({"rm": judge}, [request("a", "b"), other, request("c", "d", "e")])
    assert got == [{"rm": (0.0, 1.0)}, {}, {"rm": (0.0, 1.0, 2.0)}]
    assert judge.passes == [5]


def test_a_request_that_cannot_be_judged_fails_no_other() -> None:
    judge = Counting()
    got = judge_together({"rm": judge}, [request("a"), request("bad"), request("b", "c")])
    assert got == [{"rm": (0.0,)}, "reward rm: bad", {"rm": (0.0, 1.0)}]
