"""Tables on the wire between a reward service and those who ask it: JSON or Arrow, never pickles.

    POST /v1/score   {"rewards": ["rm"], "replies": [{"prompt": "...", "reply": "..."}, ...]}
                 ->  {"scores": {"rm": [0.25, ...]}}

The same as an Arrow stream (`application/vnd.apache.arrow.stream`): a row is a reply, its fields
are columns, `messages` and `columns` are JSON text, and the names of the rewards are in the
schema's metadata; the answer has one float64 column per named reward. Whoever asks in one form is
answered in it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from actors.judges.answers import Scores, checked
from rl.types import Prompt, Rollout, VersionSpan

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
AS_TEXT = ("messages", "columns")
"""Fields that are JSON inside an Arrow table: rows need not have the same keys."""
UNKNOWN_TOKENS = (0,)
"""What stands for a prompt's tokens where they were not sent: judges read texts."""


class WireError(ValueError):
    """A request or an answer that cannot be read; one line that says what is wrong with it."""


class Reply(BaseModel):
    """One row of a request: a reply, and what a judge may read beside it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompt: str
    reply: str
    group: int | None = None
    """Replies of one number are compared with each other; where absent, replies to equal prompts
    are."""
    row: int | None = None
    """Number of the prompt's row in its data set; of the reply in the request where absent."""
    messages: list[dict[str, str]] | None = None
    """The conversation that the prompt ends, for models that read one."""
    columns: dict[str, Any] | None = None
    """The data set's other columns, which reward functions are given."""
    label: float | None = None
    """What people said of the reply."""
    prompt_tokens: list[int] | None = None
    reply_tokens: list[int] | None = None
    """In the policy's vocabulary, which need not be that of the judge."""


_ROWS = TypeAdapter(list[Reply])


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreRequest:
    """Replies, and the names of the rewards that are to judge them."""

    rewards: tuple[str, ...]
    rollouts: tuple[Rollout, ...]


def encode_request(rewards: Sequence[str], rollouts: Sequence[Rollout]) -> bytes:
    """As an Arrow stream; `WireError` names a row's column that cannot travel."""
    rows = [_row(rollout) for rollout in rollouts]
    table = pa.table(
        {
            "prompt": pa.array([row["prompt"] for row in rows], pa.string()),
            "reply": pa.array([row["reply"] for row in rows], pa.string()),
            "group": pa.array([row["group"] for row in rows], pa.int64()),
            "row": pa.array([row["row"] for row in rows], pa.int64()),
            "messages": pa.array([row["messages"] for row in rows], pa.string()),
            "columns": pa.array([row["columns"] for row in rows], pa.string()),
            "label": pa.array([row["label"] for row in rows], pa.float64()),
            "prompt_tokens": pa.array([row["prompt_tokens"] for row in rows], pa.list_(pa.int32())),
            "reply_tokens": pa.array([row["reply_tokens"] for row in rows], pa.list_(pa.int32())),
        }
    )
    return _stream(table.replace_schema_metadata({"rewards": json.dumps(list(rewards))}))


def _row(rollout: Rollout) -> dict[str, Any]:
    prompt = rollout.prompt
    return {
        "prompt": prompt.text,
        "reply": rollout.text,
        "group": rollout.group_id,
        "row": prompt.row,
        "messages": json.dumps([dict(message) for message in prompt.messages]),
        "columns": _columns(prompt),
        "label": rollout.label,
        "prompt_tokens": list(prompt.tokens),
        "reply_tokens": rollout.tokens,
    }


def _columns(prompt: Prompt) -> str:
    try:
        return json.dumps(dict(prompt.extra))
    except TypeError as error:
        name = next(name for name, value in prompt.extra.items() if not _is_json(value))
        raise WireError(
            f"row {prompt.row}: column {name} is a {type(prompt.extra[name]).__name__}, which a "
            "reward service cannot be sent: make it text or a number"
        ) from error


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def decode_request(body: bytes, content_type: str) -> ScoreRequest:
    """Read a request of either form; `WireError` says what is wrong with it."""
    if content_type == ARROW:
        table = _table(body)
        names = (table.schema.metadata or {}).get(b"rewards", b"null")
        rewards, rows = _parsed(names, "rewards"), list(_rows(table))
    elif content_type == JSON:
        found = _parsed(body, "the body")
        if not isinstance(found, Mapping) or set(found) != {"rewards", "replies"}:
            raise WireError('the body should be {"rewards": [...], "replies": [...]}')
        rewards, rows = found["rewards"], found["replies"]
    else:
        raise WireError(f"content type {content_type or 'missing'}: use {JSON} or {ARROW}")
    if not isinstance(rewards, list) or not all(isinstance(name, str) for name in rewards):
        raise WireError("rewards should be a list of names")
    if not rewards:
        raise WireError("rewards is empty: name at least one")
    try:
        replies = _ROWS.validate_python(rows)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise WireError(f"replies.{where}: {first['msg']}".replace("..", ".")) from error
    if not replies:
        raise WireError("replies is empty: send at least one")
    return ScoreRequest(rewards=tuple(dict.fromkeys(rewards)), rollouts=_rollouts(replies))


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(table.to_pylist()):
        texts = {
            name: _parsed(row[name], f"replies.{number}.{name}")
            for name in AS_TEXT
            if row.get(name) is not None
        }
        yield row | texts


def _rollouts(replies: Sequence[Reply]) -> tuple[Rollout, ...]:
    """Replies as judges take them; what only a sampler knows is left at 0."""
    groups: dict[Any, int] = {}
    rollouts = []
    for number, reply in enumerate(replies):
        key = reply.prompt if reply.group is None else reply.group
        tokens = np.asarray(reply.reply_tokens or [], dtype=np.int32)
        rollouts.append(
            Rollout(
                group_id=groups.setdefault(key, len(groups)),
                sample=number,
                prompt=Prompt(
                    row=number if reply.row is None else reply.row,
                    text=reply.prompt,
                    tokens=tuple(reply.prompt_tokens or UNKNOWN_TOKENS),
                    extra=reply.columns or {},
                    messages=tuple(reply.messages or ()),
                ),
                tokens=tokens,
                text=reply.reply,
                rollout_logprobs=np.zeros(len(tokens), dtype=np.float32),
                versions=(VersionSpan(version=0, start=0, end=len(tokens)),),
                finish_reason="stop",
                seed=0,
                engine="",
                label=reply.label,
            )
        )
    return tuple(rollouts)


def renumbered(rollouts: Sequence[Rollout], first: int) -> list[Rollout]:
    """The same replies with group ids from `first` on: those of two requests must not meet."""
    return [replace(rollout, group_id=first + rollout.group_id) for rollout in rollouts]


def encode_scores(scores: Mapping[str, Sequence[float]], content_type: str) -> bytes:
    """An answer, in the form of the request."""
    if content_type == ARROW:
        columns = {name: pa.array(list(values), pa.float64()) for name, values in scores.items()}
        return _stream(pa.table(columns))
    return json.dumps({"scores": {name: list(values) for name, values in scores.items()}}).encode()


def decode_scores(body: bytes, content_type: str) -> dict[str, list[Any]]:
    """An answer of either form, as it was sent: `checked_scores` says whether it is one."""
    if content_type == ARROW:
        return _table(body).to_pydict()
    found = _parsed(body, "the answer")
    scores = found.get("scores") if isinstance(found, Mapping) else None
    if not isinstance(scores, Mapping) or not all(isinstance(s, list) for s in scores.values()):
        raise WireError('the answer is not {"scores": {NAME: [numbers]}}')
    return dict(scores)


def checked_scores(
    scores: Mapping[str, Sequence[Any]], names: Sequence[str], rollouts: Sequence[Rollout]
) -> Scores:
    """One finite float per reply for every name asked for, and for parts `name/part` of them.

    `ValueError` names what is missing, what nobody asked for, or the first wrong score.
    """
    for name in names:
        if name not in scores:
            raise WireError(f"no scores of reward {name} in the answer")
    for name in scores:
        if name.partition("/")[0] not in names:
            raise WireError(f"the answer has scores of {name}, which nobody asked for")
    return {name: checked(name, values, rollouts) for name, values in scores.items()}


def _parsed(text: bytes | str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WireError(f"{what} is not JSON: {error}") from error


def _stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _table(body: bytes) -> pa.Table:
    """A table from outside, its buffers checked before anything is read from them."""
    try:
        with pa.ipc.open_stream(body) as reader:
            table = reader.read_all()
        table.validate(full=True)
        twice = {name for name in table.column_names if table.column_names.count(name) > 1}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise WireError(f"not an Arrow stream: {str(error).splitlines()[0]}") from error
    if twice:
        raise WireError(f"the column {min(twice)} is there twice")
    return table
