"""The rows of a page: numbers from memory, texts from the few row groups that hold them."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.rollouts.files import Changed, StepFile, Torn, opened
from cluster.rollouts.ids import SampleId
from cluster.rollouts.index import Snapshot
from cluster.rollouts.parallel import each_until

EXCERPT = 400
"""Letters of a text on a page."""
BEFORE = 80
"""Of them before the words that were looked for."""
_TEXTS = ("prompt", "reply", "rewards")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A sample as a page lists it; a number that the run did not record is None."""

    id: str
    step: int
    group_id: int
    sample: int
    prompt_row: int | None
    prompt: str
    """At most EXCERPT letters, around what was looked for; as `reply`."""
    reply: str
    score: float | None
    advantage: float | None
    """Mean over the reply's tokens."""
    length: int | None
    """Tokens of the reply."""
    staleness: int | None
    newest_version: int | None
    finish_reason: str
    engine: str
    source: str
    rewards: Mapping[str, float | None]


def read_rows(snapshot: Snapshot, rows: np.ndarray, text: str = "") -> list[Row]:
    """These rows of a snapshot, in this order; raises Changed where a file is another one now."""
    wanted: dict[StepFile, list[int]] = defaultdict(list)
    places = [snapshot.file_of(int(row)) for row in rows]
    for file, number in places:
        wanted[file].append(number)
    found: dict[tuple[StepFile, int], dict[str, Any]] = {}
    changed: list[StepFile] = []

    def look(file: StepFile) -> None:
        try:
            found.update({(file, n): row for n, row in _texts(file, wanted[file]).items()})
        except Changed:
            changed.append(file)
        except Torn as error:
            found.update({(file, n): {"prompt": f"({error})"} for n in wanted[file]})

    each_until(wanted, look)
    if changed:
        raise Changed(*changed)
    return [_row(snapshot, int(row), found[at], text) for row, at in zip(rows, places, strict=True)]


def number(value: float | int | None) -> float | None:
    """A finite number, else None: JSON has no others."""
    return float(value) if value is not None and math.isfinite(value) else None


def whole(value: float | int | None) -> int | None:
    """The same of a whole number, which -1 says is missing."""
    found = number(value)
    return None if found is None or found < 0 else int(found)


def excerpt(text: str, looked_for: str = "", length: int = EXCERPT) -> str:
    """At most `length` letters around the words that were looked for, with … where it was cut.

    >>> excerpt("one two three four", "three", 9)
    '…two three…'
    """
    if len(text) <= length:
        return text
    at = text.lower().find(looked_for.lower()) if looked_for else 0
    start = max(0, min(at - min(BEFORE, length // 2), len(text) - length))
    end = start + length
    return "…" * (start > 0) + text[start:end] + "…" * (end < len(text))


def _texts(file: StepFile, numbers: list[int]) -> dict[int, dict[str, Any]]:
    """Number of the row in the file -> its texts; reads the row groups that hold these rows."""
    found: dict[int, dict[str, Any]] = {}
    with opened(file) as parquet:
        offsets = parquet.offsets
        groups = np.searchsorted(offsets, numbers, side="right") - 1
        for group in np.unique(groups):
            table = parquet.read([int(group)], _TEXTS)
            own = [number for number, at in zip(numbers, groups, strict=True) if at == group]
            taken = table.take([number - int(offsets[group]) for number in own])
            found.update(zip(own, taken.to_pylist(), strict=True))
    return found


def _row(snapshot: Snapshot, row: int, texts: Mapping[str, Any], looked_for: str) -> Row:
    columns, names = snapshot.columns, snapshot.names
    step, group_id, sample = (
        int(values[row]) for values in (columns.step, columns.group_id, columns.sample)
    )
    return Row(
        id=str(SampleId(step=step, group_id=group_id, sample=sample)),
        step=step,
        group_id=group_id,
        sample=sample,
        prompt_row=whole(columns.prompt_row[row]),
        prompt=excerpt(texts.get("prompt") or "", looked_for),
        reply=excerpt(texts.get("reply") or "", looked_for),
        score=number(columns.score[row]),
        advantage=number(columns.advantage[row]),
        length=whole(columns.length[row]),
        staleness=whole(columns.staleness[row]),
        newest_version=whole(columns.newest_version[row]),
        finish_reason=names.word(columns.finish_reason[row]),
        engine=names.word(columns.engine[row]),
        source=names.word(columns.source[row]),
        rewards={name: number(value) for name, value in texts.get("rewards") or []},
    )
