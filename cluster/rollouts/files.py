"""The Parquet files of a run's steps: which there are, and reading one that may be replaced.

A run that goes on adds a folder per step; one that goes back to a checkpoint moves folders away and
writes them anew. So a file counts as the same only while its size, time and inode are the same, and
whoever reads rows by their number learns that they are not there any more.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FOLDER = "experience"
SURE = 8
"""Newest steps that are looked into each time: a second file may join the first within one tick of
the file system's clock."""
_STEP = re.compile(r"step=(\d+)")


class Changed(Exception):
    """Files that are not there any more, or others are: the run has gone back to a checkpoint."""

    def __init__(self, *files: "StepFile") -> None:
        super().__init__(", ".join(file.name for file in files))
        self.files = files


class Torn(Exception):
    """A file that cannot be read; the message names it."""


@dataclass(frozen=True, kw_only=True)
class StepFile:
    """One Parquet file as it was when it was listed."""

    step: int
    path: str
    size: int
    mtime_ns: int
    inode: int

    def __hash__(self) -> int:
        return hash(self.path)  # asked for thousands of times a page; texts keep theirs

    @property
    def name(self) -> str:
        """For people: `step=000012/rank=0.parquet`."""
        return "/".join(Path(self.path).parts[-2:])

    def is_there(self) -> bool:
        """Whether the path still leads to this very file."""
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns, found.st_ino) == (
            self.size, self.mtime_ns, self.inode,
        )  # fmt: skip


class Listing:
    """All files of a run, newest step first; looks again only into folders that have changed."""

    def __init__(self, run_dir: str | Path, step: int | None = None) -> None:
        """`step`: of this step alone."""
        self.folder, self.step = Path(run_dir) / FOLDER, step
        self._known: dict[str, tuple[tuple[int, int], list[StepFile]]] = {}

    def look(self) -> list[StepFile]:
        """What is there now; nothing where there is no folder."""
        folders = _step_folders(self.folder, self.step)
        known: dict[str, tuple[tuple[int, int], list[StepFile]]] = {}
        for place, (step, entry) in enumerate(folders):
            try:
                found = entry.stat()
                stamp = (found.st_mtime_ns, found.st_ino)
                before = self._known.get(entry.path)
                if place < SURE or before is None or before[0] != stamp:
                    before = (stamp, _files_in(step, entry.path))
            except OSError:
                continue  # it was moved away just now
            known[entry.path] = before
        self._known = known
        return [file for _, files in known.values() for file in files]

    def forget(self, files: Iterable[StepFile]) -> None:
        """Look into the folders of these files again, whatever their time says."""
        for file in files:
            self._known.pop(str(Path(file.path).parent), None)


def files_of_step(run_dir: str | Path, step: int) -> list[StepFile]:
    """The files of one step, by name; empty where it has none."""
    return Listing(run_dir, step).look()


def _step_folders(folder: Path, only: int | None) -> list[tuple[int, "os.DirEntry[str]"]]:
    """Step and folder, newest first."""
    try:
        with os.scandir(folder) as entries:
            found = [(match, entry) for entry in entries if (match := _STEP.fullmatch(entry.name))]
    except (FileNotFoundError, NotADirectoryError):
        return []
    steps = [(int(match[1]), entry) for match, entry in found]
    wanted = [pair for pair in steps if only is None or pair[0] == only]
    return sorted(wanted, key=lambda pair: (-pair[0], pair[1].name))


def _files_in(step: int, folder: str) -> list[StepFile]:
    found = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.endswith(".parquet") and not entry.name.startswith("."):
                facts = entry.stat()
                found.append(
                    StepFile(
                        step=step,
                        path=entry.path,
                        size=facts.st_size,
                        mtime_ns=facts.st_mtime_ns,
                        inode=facts.st_ino,
                    )
                )
    return found


class OpenFile:
    """A Parquet file that is read by row group and column, on the caller's thread."""

    def __init__(self, source: pa.NativeFile, dictionaries: Iterable[str]) -> None:
        try:
            self._file = pq.ParquetFile(
                source, read_dictionary=list(dictionaries), pre_buffer=False
            )
        except KeyError:  # it lacks one of them
            self._file = pq.ParquetFile(source, pre_buffer=False)
        self.names = frozenset(self._file.schema_arrow.names)
        """Of its columns: runs of before had fewer."""
        self.num_groups = self._file.num_row_groups

    def read(self, groups: Iterable[int], columns: Iterable[str] | None = None) -> pa.Table:
        """Some row groups: those of the columns that the file has, or all."""
        wanted = None if columns is None else [name for name in columns if name in self.names]
        return self._file.read_row_groups(list(groups), columns=wanted, use_threads=False)

    def num_rows(self, group: int) -> int:
        """Of one row group."""
        return self._file.metadata.row_group(group).num_rows

    @property
    def offsets(self) -> np.ndarray:
        """(num_groups + 1,) at which row each row group begins, and at last the number of rows."""
        return np.cumsum([0, *(self.num_rows(group) for group in range(self.num_groups))])


@contextmanager
def opened(file: StepFile, dictionaries: Iterable[str] = ()) -> Iterator[OpenFile]:
    """The file, for reading some of it; `dictionaries` are columns to keep encoded.

    Raises Changed where it is not the one that was listed, and Torn where it cannot be read.
    """
    try:
        with pa.OSFile(file.path) as source:
            # Asked once it is open: a later one can be put in its place, but not into this handle.
            if not file.is_there():
                raise Changed(file)
            yield OpenFile(source, dictionaries)
    except FileNotFoundError:
        raise Changed(file) from None
    except (pa.ArrowException, OSError) as error:
        if not file.is_there():
            raise Changed(file) from error
        reason = getattr(error, "strerror", None) or "torn"
        raise Torn(f"{FOLDER}/{file.name}: {reason} and left out.") from error
