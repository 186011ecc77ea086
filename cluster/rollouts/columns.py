"""The few numbers of every sample that are kept in memory: about 50 bytes each."""

import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.rollouts.files import StepFile, opened

NUMBERS = ("group_id", "sample", "prompt_row", "score")
SHORT = ("num_tokens", "advantage", "staleness", "newest_version")
"""Numbers that say what lists say token by token. Runs of before they were written lack them."""
LISTS = {
    "num_tokens": "versions",
    "staleness": "versions",
    "newest_version": "versions",
    "advantage": "advantages",
}
"""From which list a number is found where it is missing; spans of versions are short, and the last
one ends where the reply does."""
KINDS = ("finish_reason", "engine", "source")


@dataclass(frozen=True, kw_only=True, eq=False)
class Columns:
    """Numbers of N samples, side by side; what a run did not record is NaN, or a whole -1."""

    step: np.ndarray  # (N,) int32
    group_id: np.ndarray  # (N,) int64
    sample: np.ndarray  # (N,) int32
    prompt_row: np.ndarray  # (N,) int64
    score: np.ndarray  # (N,) float64
    advantage: np.ndarray  # (N,) float32, mean over tokens
    length: np.ndarray  # (N,) float32, tokens
    staleness: np.ndarray  # (N,) float32; NaN where the policy in training is not the author
    newest_version: np.ndarray  # (N,) float32
    finish_reason: np.ndarray  # (N,) int16 codes of `Names`
    engine: np.ndarray  # (N,) int16
    source: np.ndarray  # (N,) int16

    def __len__(self) -> int:
        return len(self.step)

    @property
    def oldest_version(self) -> np.ndarray:
        """(N,) float32, NaN where the policy in training wrote none of it."""
        return self.step - 1 - self.staleness

    def part(self, start: int, stop: int) -> "Columns":
        """A view of some rows in a row."""
        return Columns(**{f.name: getattr(self, f.name)[start:stop] for f in fields(self)})


def joined(parts: Sequence[Columns]) -> Columns:
    """All rows of the parts; of no parts, none."""
    parts = parts or [_empty()]
    names = [field.name for field in fields(Columns)]
    return Columns(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})


class Names:
    """Short numbers for the few words that samples share: why they ended, who wrote them.

    >>> names = Names(); names.codes(["stop", "length", "stop"]).tolist(), names.word(1)
    ([0, 1, 0], 'length')
    """

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._words: list[str] = []
        self._lock = threading.Lock()

    def codes(self, words: Iterable[str | None]) -> np.ndarray:
        """int16, one for each word; None counts as the empty word."""
        with self._lock:
            return np.asarray([self._code(word or "") for word in words], np.int16)

    def _code(self, word: str) -> int:
        if word not in self._codes:
            self._codes[word] = len(self._words)
            self._words.append(word)
        return self._codes[word]

    def known(self, word: str) -> int:
        """The word's number; -1 where no sample has it."""
        return self._codes.get(word, -1)

    def word(self, code: int) -> str:
        """The word of a number."""
        return self._words[code]


def read_numbers(file: StepFile) -> pa.Table:
    """What `columns_of` makes columns of; raises Changed or Torn."""
    with opened(file, KINDS) as parquet:
        lists = {LISTS[name] for name in SHORT if name not in parquet.names}
        return parquet.read(range(parquet.num_groups), [*NUMBERS, *SHORT, *KINDS, *lists])


def columns_of(tables: Mapping[StepFile, pa.Table], names: Names) -> dict[StepFile, Columns]:
    """The columns of each file; of many at once, since a call takes as long for one as for all."""
    alike: dict[pa.Schema, list[StepFile]] = defaultdict(list)
    for file, table in tables.items():
        alike[table.schema].append(file)
    found: dict[StepFile, Columns] = {}
    for files in alike.values():
        own = [tables[file] for file in files]
        lengths = [len(table) for table in own]
        steps = np.repeat([file.step for file in files], lengths).astype(np.int32)
        columns = _columns(pa.concat_tables(own), steps, names)
        ends = np.cumsum(lengths)
        for file, end, length in zip(files, ends, lengths, strict=True):
            found[file] = columns.part(int(end) - length, int(end))
    return found


def _columns(table: pa.Table, step: np.ndarray, names: Names) -> Columns:
    numbers = _short_numbers(table, step)
    return Columns(
        step=step,
        group_id=_numbers(table, "group_id", np.int64),
        sample=_numbers(table, "sample", np.int32),
        prompt_row=_numbers(table, "prompt_row", np.int64),
        score=_numbers(table, "score", np.float64),
        length=numbers["num_tokens"],
        advantage=numbers["advantage"],
        staleness=numbers["staleness"],
        newest_version=numbers["newest_version"],
        finish_reason=_words(table, "finish_reason", names),
        engine=_words(table, "engine", names),
        source=_words(table, "source", names),
    )


def _empty() -> Columns:
    kinds = {"step": np.int32, "group_id": np.int64, "sample": np.int32, "prompt_row": np.int64}
    kinds |= {"score": np.float64} | dict.fromkeys(KINDS, np.int16)
    return Columns(**{f.name: np.empty(0, kinds.get(f.name, np.float32)) for f in fields(Columns)})


def _numbers(table: pa.Table, name: str, kind: type) -> np.ndarray:
    """A column as numpy; NaN, or -1 of whole numbers, where it is null or not there."""
    is_whole = np.issubdtype(kind, np.integer)
    missing = -1 if is_whole else np.nan
    if name not in table.column_names:
        return np.full(len(table), missing, kind)
    column = table[name]
    if column.null_count and is_whole:
        column = pc.fill_null(column, -1)
    return column.to_numpy().astype(kind, copy=False)


def _words(table: pa.Table, name: str, names: Names) -> np.ndarray:
    if name not in table.column_names:
        return names.codes([None]).repeat(len(table))
    column = table[name].combine_chunks()
    if not isinstance(column, pa.DictionaryArray):
        column = column.dictionary_encode()
    codes = names.codes([*column.dictionary.to_pylist(), None])
    return codes[pc.fill_null(column.indices, len(codes) - 1).to_numpy(zero_copy_only=False)]


# ---- runs of before the short numbers were written -----------------------------------------------


def _short_numbers(table: pa.Table, step: np.ndarray) -> dict[str, np.ndarray]:
    """float32 by name, from the columns of that name or from the lists."""
    found = {name: _numbers(table, name, np.float32) for name in SHORT}
    if "advantages" in table.column_names:
        found["advantage"] = _means(table["advantages"])
    if "versions" in table.column_names:
        length, oldest, newest = _spans(table["versions"])
        found |= {"num_tokens": length, "newest_version": newest, "staleness": step - 1 - oldest}
        if "source" in table.column_names:
            is_other = [source != "policy" for source in table["source"].to_pylist()]
            found["staleness"][np.asarray(is_other, bool)] = np.nan
    return found


def _means(column: pa.ChunkedArray) -> np.ndarray:
    """(N,) mean of each list, NaN of empty and null ones."""
    lists = column.combine_chunks()
    rows = lists.value_parent_indices().to_numpy()
    sums = np.bincount(rows, lists.flatten().to_numpy(zero_copy_only=False), len(lists))
    counts = np.bincount(rows, minlength=len(lists)).astype(np.float64)
    counts[counts == 0] = np.nan
    return (sums / counts).astype(np.float32)


def _spans(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N,) each: tokens, oldest and newest version of each list of spans; NaN of empty ones."""
    lists = column.combine_chunks()
    rows, spans = lists.value_parent_indices().to_numpy(), lists.flatten()
    versions, ends = (spans.field(name).to_numpy() for name in ("version", "end"))
    length, oldest, newest = (np.full(len(lists), np.nan, np.float32) for _ in range(3))
    np.fmax.at(length, rows, ends)
    np.fmin.at(oldest, rows, versions)
    np.fmax.at(newest, rows, versions)
    return length, oldest, newest
