"""Files of JSON lines that others append to, read as they grow.

Most of them only grow. metrics.jsonl is written anew by a learner that goes on: it forgets the
steps after its checkpoint, so that the file ends earlier and grows again, perhaps beyond the place
that a reader has reached. A reader of it therefore knows the line that it has read last, and goes
back where another one stands in its place.
"""

import json
import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

MOST_MARKS = 32
CHUNK = 2**22
"""Bytes that are read at a time, or little more."""


class JsonlTail:
    """What was appended to a file that only grows, since the last look.

    >>> # tail = JsonlTail(run_dir / "events.jsonl"); rows = tail.read()
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0

    def read(self) -> list[dict[str, Any]]:
        """New whole rows; torn lines are left out, and one that is being written is left for the
        next look, as is all of a file that cannot be read now.

        A file that is shorter than what was read of it is another one, and read from its start.
        """
        rows: list[dict[str, Any]] = []
        with suppress(OSError), self.path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self.position:
                self.position = 0
            file.seek(self.position)
            while lines := file.readlines(CHUNK):
                whole = lines if lines[-1].endswith(b"\n") else lines[:-1]
                rows += _objects(whole)
                self.position += sum(map(len, whole))
                if len(whole) < len(lines):
                    break
        return rows


class Mark(NamedTuple):
    """A line that was read."""

    end: int
    """Offset behind it."""
    size: int
    """Bytes, its line break included."""
    crc: int

    def is_in(self, file: IO[bytes]) -> bool:
        """Whether the file still has this line in this place."""
        file.seek(self.end - self.size)
        line = file.read(self.size)
        return len(line) == self.size and zlib.crc32(line) == self.crc


class MetricsTail:
    """Reads the rows that were appended since the last look.

    A step that is not newer than the one before it says that the run went back and has taken it
    again; some rows that are still the same may come again, too.

    >>> tail = MetricsTail(run_dir)  # doctest: +SKIP
    >>> [row["step"] for row in tail.read()]
    [1, 2, 3, 4]
    >>> # the learner is killed, goes on behind step 2 and takes step 3 again
    >>> [row["step"] for row in tail.read()]
    [3]
    """

    def __init__(self, run_dir: str | Path, marks: Sequence[Mark] = ()) -> None:
        """`marks` are those of a tail before this one, which it goes on from."""
        self.path = Path(run_dir) / "metrics.jsonl"
        self.marks = list(marks)
        """Lines that were read, the newest last: the last ones of all, and few of old ones."""
        self.written_at = 0.0
        """Unix time of the last write before the last look."""
        self._torn = self._torn_last = 0

    @property
    def num_torn(self) -> int:
        """Lines so far that are no row."""
        return self._torn + self._torn_last

    def read(self) -> list[dict[str, Any]]:
        """New whole rows, at most about `CHUNK` bytes; torn lines are left out.

        A line that is being written is left for the next look, as is all of a file that cannot be
        read now.
        """
        try:
            with self.path.open("rb") as file:
                while self.marks and not self.marks[-1].is_in(file):
                    self.marks.pop()
                end = self.marks[-1].end if self.marks else 0
                file.seek(end)
                self.written_at = os.fstat(file.fileno()).st_mtime
                lines = file.readlines(CHUNK)
        except OSError:
            return []
        return self._rows(lines, end)

    def _rows(self, lines: Sequence[bytes], end: int) -> list[dict[str, Any]]:
        """Of lines that begin at offset `end`; remembers how far they go."""
        rows = []
        self._torn_last = 0
        for line in lines:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            if (row := _row(line)) is None:
                self._torn_last += bool(line.strip())  # read again, unless a row follows
                continue
            rows.append(row)
            self._torn, self._torn_last = self._torn + self._torn_last, 0
            self._remember(Mark(end, len(line), zlib.crc32(line)))
        return rows

    def _remember(self, mark: Mark) -> None:
        """Keep every mark of late, and every second of the older half when there are too many."""
        self.marks.append(mark)
        if len(self.marks) > MOST_MARKS:
            del self.marks[1 : MOST_MARKS // 2 : 2]


def _row(line: bytes) -> dict[str, Any] | None:
    """None where a full disk has cut the line."""
    row = _object(line)
    try:
        return None if row is None else {**row, "step": int(row["step"])}
    except (ValueError, TypeError, KeyError):
        return None


def _objects(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    """The rows of whole lines; all at once where none is torn, which takes half the time."""
    try:
        rows = json.loads(b"[" + b",".join(line for line in lines if line.strip()) + b"]")
    except ValueError:
        rows = [_object(line) for line in lines]
    return [row for row in rows if isinstance(row, dict)]


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        return dict(json.loads(line)) if line.strip() else None
    except (ValueError, TypeError):
        return None
