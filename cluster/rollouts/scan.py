"""What is not kept in memory, read where it is asked for and as far as there is time.

A scan looks at one thing of every sample: whether its text holds some words, how a reward judged
it, whether a version wrote a part of it. Each call goes on where the last one stopped, newest step
first, so that no request takes long and asking again comes to the end. What was found is kept for
the scans that were used last, and a file that was replaced is scanned anew.
"""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.rollouts.files import Changed, OpenFile, StepFile, Torn, opened
from cluster.rollouts.index import Snapshot
from cluster.rollouts.parallel import each_until

KEPT = 8
"""Scans whose findings are kept: 1 to 8 bytes for each sample."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What is looked for.

    text      whether prompt or reply holds `text`, small and capital letters alike; 1.0 or 0.0
    version   whether the policy of that version wrote a part of the reply
    reward    what the reward of that name gave; NaN where it judged nothing
    """

    kind: Literal["text", "version", "reward"]
    text: str

    def __call__(self, parquet: OpenFile, group: int) -> np.ndarray:
        """(rows of the group,) float64."""
        match self.kind:
            case "text":
                return _holds(parquet, group, self.text)
            case "version":
                return _wrote(parquet, group, int(self.text))
            case "reward":
                return _rewards(parquet, group, self.text)


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What a scan knows so far of the rows of a snapshot."""

    values: np.ndarray  # (N,) float64
    is_known: np.ndarray  # (N,) bool


@dataclass(kw_only=True)
class _Part:
    """Of one file: its first row groups."""

    values: list[np.ndarray] = field(default_factory=list)
    is_whole: bool = False


class Scans:
    """The findings of the scans that were used last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Scan, dict[StepFile, _Part]] = OrderedDict()
        self._lock = threading.Lock()

    def run(
        self, snapshot: Snapshot, scan: Scan, is_wanted: np.ndarray, deadline: float
    ) -> tuple[Found, list[StepFile]]:
        """Go on with a scan until `time.monotonic()` reaches the deadline.

        `is_wanted` (files,) bool says in which files there is anything to find. Also returns the
        files that turned out to have changed.
        """
        parts = self._parts(scan)
        wanted = [snapshot.files[number] for number in np.flatnonzero(is_wanted)]
        changed: list[StepFile] = []
        rest = [file for file in wanted if file not in parts or not parts[file].is_whole]
        if rest:
            each_until(rest, partial(_go_on, scan, parts, changed, deadline), deadline)
        return _found(snapshot, parts, is_wanted), changed

    def _parts(self, scan: Scan) -> dict[StepFile, _Part]:
        with self._lock:
            parts = self._kept.setdefault(scan, {})
            self._kept.move_to_end(scan)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return parts


def _go_on(
    scan: Scan,
    parts: dict[StepFile, _Part],
    changed: list[StepFile],
    deadline: float,
    file: StepFile,
) -> None:
    """Scan a file from the row group on that is not known yet."""
    before = parts.get(file)
    values = list(before.values) if before else []  # another thread may be at the same file
    try:
        with opened(file, ["prompt"]) as parquet:
            while len(values) < parquet.num_groups:
                values.append(scan(parquet, len(values)))
                if time.monotonic() > deadline:
                    break
            is_whole = len(values) == parquet.num_groups
    except Changed:
        changed.append(file)
    except Torn:  # its numbers could be read, what is looked for cannot
        parts[file] = _Part(values=values, is_whole=True)
    else:
        parts[file] = _Part(values=values, is_whole=is_whole)


def _found(snapshot: Snapshot, parts: dict[StepFile, _Part], is_wanted: np.ndarray) -> Found:
    values = np.full(len(snapshot), np.nan)
    is_known = np.zeros(len(snapshot), bool)
    for number in np.flatnonzero(is_wanted):
        part = parts.get(snapshot.files[number])
        rows = snapshot.slice_of(number)
        at = rows.start
        for some in part.values if part else ():
            values[at : at + len(some)] = some
            at += len(some)
        is_known[rows.start : rows.stop if part and part.is_whole else at] = True
    return Found(values=values, is_known=is_known)


# ---- what is looked for --------------------------------------------------------------------------


def _holds(parquet: OpenFile, group: int, text: str) -> np.ndarray:
    table = parquet.read([group], ("prompt", "reply"))
    hits = np.zeros(parquet.num_rows(group), bool)
    for name in table.column_names:
        column = table[name].combine_chunks()
        if isinstance(column, pa.DictionaryArray):  # a prompt stands before all its replies
            found = _matches(column.dictionary, text).take(column.indices)
        else:
            found = _matches(column, text)
        hits |= pc.fill_null(found, False).to_numpy(zero_copy_only=False)
    return hits.astype(np.float64)


def _matches(texts: pa.Array, text: str) -> pa.Array:
    options = pc.MatchSubstringOptions(text, ignore_case=True)
    return pc.call_function("match_substring", [texts], options)


def _wrote(parquet: OpenFile, group: int, version: int) -> np.ndarray:
    table = parquet.read([group], ("versions",))
    num_rows = parquet.num_rows(group)
    if not table.num_columns:
        return np.zeros(num_rows)
    lists = table["versions"].combine_chunks()
    versions = lists.flatten().field("version").to_numpy()
    rows = lists.value_parent_indices().to_numpy()
    return np.bincount(rows, versions == version, minlength=num_rows).clip(max=1)


def _rewards(parquet: OpenFile, group: int, name: str) -> np.ndarray:
    table = parquet.read([group], ("rewards",))
    num_rows = parquet.num_rows(group)
    values = np.full(num_rows, np.nan)
    if table.num_columns:
        maps = table["rewards"].combine_chunks()
        rows = np.repeat(np.arange(num_rows), np.diff(maps.offsets.to_numpy()))
        start, stop = maps.offsets[0].as_py(), maps.offsets[-1].as_py()
        is_it = pc.call_function("equal", [maps.keys[start:stop], pa.scalar(name)])
        is_it = is_it.to_numpy(zero_copy_only=False)
        values[rows[is_it]] = maps.items[start:stop].to_numpy(zero_copy_only=False)[is_it]
    return values
