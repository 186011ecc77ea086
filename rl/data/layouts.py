"""What the columns of a row mean: prompts, demonstrations, pairs, ratings or lists.

| layout | columns |
|---|---|
| prompts | a prompt, or `messages` that end with the user's turn |
| demonstrations | a prompt and a completion, or `messages` that end with the assistant's turn |
| pairs | `chosen` and `rejected`, beside a prompt or as two dialogues with a common beginning |
| ratings | a demonstration beside a score |
| lists | a prompt, `replies` and as many `scores` |

Columns have the usual names (`PROMPT`, `COMPLETION`, `SCORE`, `REPLIES`); a prompt is a string or
messages. A string that begins with "\\n\\nHuman:" is read as a dialogue in the layout of Bai et al.
(arXiv 2204.05862).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rl.data.rows import Row, read_rows

Message = dict[str, str]
Kind = Literal["prompts", "demonstrations", "pairs", "ratings", "lists"]

PROMPT = ("prompt", "instruction", "question", "query")
COMPLETION = ("completion", "response", "output", "answer")
SCORE = ("score", "rating", "reward", "label")
REPLIES = ("replies", "responses", "completions")
SCORES = "scores"
ROLES = ("system", "user", "assistant")

_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which column plays which part; empty where the layout has no such part.

    >>> detect(Row({"question": "2+2?", "answer": "4"}, "qa.jsonl line 1")).kind
    'demonstrations'
    """

    kind: Kind
    prompt: str = ""
    messages: str = ""
    completion: str = ""
    score: str = ""
    replies: str = ""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row with its columns understood; what its layout lacks is `None`."""

    row: int
    """Row number in the source, counted from 0."""
    where: str
    """The same for people: `FILE line 17`."""
    messages: tuple[Message, ...]
    """The conversation up to the user's last words, each message with `role` and `content`."""
    completion: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    score: float | None = None
    replies: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    extra: Mapping[str, Any]
    """All columns but the one that the conversation was taken from."""


def read_examples(path: str | Path, accepted: Sequence[Kind]) -> list[Example]:
    """All rows of `path`, understood through the columns of its first row.

    Raises `ValueError` where the file is of another kind than the accepted ones, and names the row
    and the field where a row differs from the first.
    """
    rows = read_rows(path)
    layout = detect(rows[0])
    if layout.kind not in accepted:
        raise ValueError(
            f"{path} holds {layout.kind} (columns {', '.join(rows[0])}), but {accepted[0]} are "
            f"needed: see {_NEEDED[accepted[0]]}"
        )
    return [normalise(row, number, layout) for number, row in enumerate(rows)]


_NEEDED: dict[Kind, str] = {
    "prompts": "`prompt`",
    "demonstrations": "`prompt` and `completion`, or `messages`, without a score",
    "pairs": "`chosen` and `rejected`, with or without `prompt`",
    "ratings": "`prompt`, `completion` and `score`",
    "lists": "`prompt`, `replies` and `scores`",
}


def detect(row: Row) -> Layout:
    """The layout that the columns of `row` make."""
    prompt, completion, score = (_first(row, names) for names in (PROMPT, COMPLETION, SCORE))
    messages = _first(row, ("messages",))
    if "chosen" in row and "rejected" in row:
        return Layout(kind="pairs", prompt=prompt)
    replies = _first(row, REPLIES)
    if prompt and replies and SCORES in row:
        return Layout(kind="lists", prompt=prompt, replies=replies)
    if prompt and completion:
        kind: Kind = "ratings" if score else "demonstrations"
        return Layout(kind=kind, prompt=prompt, completion=completion, score=score)
    if messages:
        if _conversation(row[messages], row.where, messages)[-1]["role"] == "user":
            return Layout(kind="prompts", messages=messages)
        return Layout(kind="ratings" if score else "demonstrations", messages=messages, score=score)
    if prompt:
        return Layout(kind="prompts", prompt=prompt)
    raise ValueError(
        f"{row.where}: columns {', '.join(row) or '(none)'} are no known layout: name them "
        "`prompt`, `prompt` and `completion`, `messages`, or `chosen` and `rejected`"
    )


def normalise(row: Row, number: int, layout: Layout) -> Example:
    """Read `row`, the `number`-th of its source counted from 0, as `layout` says."""
    parts: dict[str, Any] = {}
    if layout.kind == "pairs":
        messages, parts["chosen"], parts["rejected"] = _pair(row, layout.prompt)
        taken = {layout.prompt} if layout.prompt else {"chosen", "rejected"}
    elif layout.messages:
        messages = _conversation(row.get(layout.messages), row.where, layout.messages)
        if layout.kind != "prompts":
            messages, parts["completion"] = _split_last(messages, row.where, layout.messages)
        taken = {layout.messages}
    else:
        messages = _prompt(row, layout.prompt)
        if layout.completion:
            parts["completion"] = _reply(row, layout.completion, messages)
        taken = {layout.prompt}
    if layout.replies:
        parts["replies"], parts["scores"] = _list(row, layout.replies)
    if layout.score:
        parts["score"] = _score(row, layout.score)
    _check_prompt(messages, row.where)
    extra = {name: value for name, value in row.items() if name not in taken}
    return Example(row=number, where=row.where, messages=tuple(messages), extra=extra, **parts)


# -- parts of a row ------------------------------------------------------------------------------


def _first(row: Row, names: Sequence[str]) -> str:
    return next((name for name in names if row.get(name) is not None), "")


def _prompt(row: Row, field: str) -> list[Message]:
    """The conversation in a prompt column: a dialogue, one user message, or messages."""
    value = row.get(field)
    if not isinstance(value, str):
        return _conversation(value, row.where, field)
    if value.startswith(_HUMAN):
        return _dialogue(value.rstrip().removesuffix(_ASSISTANT), row.where, field)
    # Instruction data often keeps the text that the instruction is about in a column of its own.
    if field == "instruction" and row.get("input"):
        value = f"{value}\n\n{row['input']}"
    return [{"role": "user", "content": value}]


def _reply(row: Row, field: str, prompt: list[Message]) -> str:
    """One reply: text, or messages that add exactly one assistant message to the prompt."""
    value = row.get(field)
    if isinstance(value, str):
        return value
    messages = _conversation(value, row.where, field)
    if messages[: len(prompt)] == prompt:
        messages = messages[len(prompt) :]
    if [message["role"] for message in messages] != ["assistant"]:
        raise ValueError(
            f"{row.where}: `{field}` must add one assistant message to `prompt`, and no other"
        )
    return messages[0]["content"]


def _score(row: Row, field: str) -> float:
    value = row.get(field)
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        raise ValueError(f"{row.where}: `{field}` must be a finite number or a truth value")
    return float(value)


def _list(row: Row, field: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Two replies or more, and a score for each."""
    replies, scores = row.get(field), row.get(SCORES)
    if not isinstance(replies, list) or not all(isinstance(reply, str) for reply in replies):
        raise ValueError(f"{row.where}: `{field}` must be a list of texts")
    if not isinstance(scores, list) or len(scores) != len(replies) or len(replies) < 2:
        raise ValueError(
            f"{row.where}: `{SCORES}` must be a list as long as `{field}`, of two or more"
        )
    checked = (_score(Row({SCORES: score}, row.where), SCORES) for score in scores)
    return tuple(replies), tuple(checked)


def _pair(row: Row, prompt: str) -> tuple[list[Message], str, str]:
    """Conversation, chosen reply and rejected reply."""
    if prompt:
        messages = _prompt(row, prompt)
        return messages, _reply(row, "chosen", messages), _reply(row, "rejected", messages)
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _split_dialogues(chosen, rejected, row.where)
    left, right = (_conversation(row.get(name), row.where, name) for name in ("chosen", "rejected"))
    if left[:-1] != right[:-1]:
        raise ValueError(
            f"{row.where}: `chosen` and `rejected` must share all messages but the last"
        )
    messages, reply = _split_last(left, row.where, "chosen")
    return messages, reply, _split_last(right, row.where, "rejected")[1]


# -- conversations -------------------------------------------------------------------------------


def _conversation(value: Any, where: str, field: str) -> list[Message]:
    """Checked messages with `role` and `content`; other keys of a message are not read."""
    if value is None:
        raise ValueError(f"{where}: `{field}` is missing, but other rows have it")
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where}: `{field}` must be text or a list of messages")
    messages = []
    for message in value:
        role, content = (
            (message.get("role"), message.get("content")) if isinstance(message, dict) else (0, 0)
        )
        if role not in ROLES or not isinstance(content, str):
            raise ValueError(
                f"{where}: each message of `{field}` needs a `role` ({', '.join(ROLES)}) and text "
                "as `content`"
            )
        messages.append({"role": role, "content": content})
    return messages


def _split_last(messages: list[Message], where: str, field: str) -> tuple[list[Message], str]:
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"{where}: `{field}` must end with the assistant's message")
    return messages[:-1], messages[-1]["content"]


def _check_prompt(messages: list[Message], where: str) -> None:
    if not messages or messages[-1]["role"] != "user":
        raise ValueError(f"{where}: a prompt must end with the user's message")
    if not messages[-1]["content"].strip():
        raise ValueError(f"{where}: the prompt is empty: write one or remove the row")


def _dialogue(text: str, where: str, field: str) -> list[Message]:
    """Turns of "\\n\\nHuman: ...\\n\\nAssistant: ..."; turns of one speaker in a row become one."""
    head, *turns = re.split(r"\n\n(Human|Assistant):", text)
    if head.strip() or not turns:
        raise ValueError(f"{where}: `{field}` must begin with a turn, as in {_HUMAN!r}")
    messages: list[Message] = []
    for speaker, words in zip(turns[::2], turns[1::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += "\n\n" + words.strip()
        else:
            messages.append({"role": role, "content": words.strip()})
    return messages


def _split_dialogues(chosen: str, rejected: str, where: str) -> tuple[list[Message], str, str]:
    """Cut two dialogues at the last assistant turn that both begin, right after a human turn.

    What follows is the reply, later turns included: a few published rows part before their last
    turn, and where they part is where the judgement begins.
    """
    letters = enumerate(zip(chosen, rejected, strict=False))
    parting = next((i for i, (a, b) in letters if a != b), min(len(chosen), len(rejected)))
    common = chosen[:parting]
    cut = common.rfind(_ASSISTANT)
    # A cut between two assistant turns would leave a prompt that ends with the assistant.
    while cut > 0 and common.rfind(_HUMAN, 0, cut) < common.rfind(_ASSISTANT, 0, cut):
        cut = common.rfind(_ASSISTANT, 0, cut)
    if cut <= 0:
        raise ValueError(
            f"{where}: `chosen` and `rejected` share no {_ASSISTANT!r} turn: write dialogues with "
            "a common beginning, or add a `prompt` column"
        )
    messages = _dialogue(common[:cut], where, "chosen")
    start = cut + len(_ASSISTANT)
    return messages, chosen[start:].strip(), rejected[start:].strip()
