"""The numbers of all samples of a run, in memory, kept up with a run that goes on.

Whoever asks reads a `Snapshot`, which never changes; refreshing puts another in its place. So any
number of threads may ask while one refreshes. Samples of the newest step come first, and they are
read first: the first page needs the last file alone.
"""

import math
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.rollouts.columns import Columns, Names, columns_of, joined, read_numbers
from cluster.rollouts.files import Changed, Listing, StepFile, Torn
from cluster.rollouts.parallel import each_until


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """What was known of a run at one moment; row i is the i-th sample, newest step first."""

    files: tuple[StepFile, ...]
    """Those that were read, newest step first."""
    starts: np.ndarray
    """(len(files) + 1,) at which row each file's samples begin."""
    columns: Columns
    names: Names
    num_pending: int
    """Files that were still to be read."""
    notes: tuple[str, ...] = field(default=())
    """What could not be read, one sentence each."""

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def num_files(self) -> int:
        """Of the run, but for torn ones."""
        return len(self.files) + self.num_pending

    def without(self, files: Iterable[StepFile]) -> "Snapshot":
        """The same, but for some files, which count as still to be read."""
        dropped = set(files)
        kept = [number for number, file in enumerate(self.files) if file not in dropped]
        slices = [self.slice_of(number) for number in kept]
        return replace(
            self,
            files=tuple(self.files[number] for number in kept),
            starts=np.cumsum([0, *(rows.stop - rows.start for rows in slices)]),
            columns=joined([self.columns.part(rows.start, rows.stop) for rows in slices]),
            num_pending=self.num_pending + len(self.files) - len(kept),
        )

    def slice_of(self, number: int) -> slice:
        """The rows of the file with this number."""
        return slice(int(self.starts[number]), int(self.starts[number + 1]))

    def file_of(self, row: int) -> tuple[StepFile, int]:
        """The file of a row, and its number in there."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.files[number], row - int(self.starts[number])


class Index:
    """Reads what is new, and hands out snapshots.

    >>> # index.refresh(0.2); index.snapshot.num_pending  -> 1800 of 2000 files, newest ones known
    >>> # index.refresh(); index.snapshot.num_pending     -> 0
    """

    def __init__(self, run_dir: str | Path, step: int | None = None) -> None:
        """`step`: of this step alone."""
        self.names = Names()
        self.listing = Listing(run_dir, step)
        self._parts: dict[StepFile, Columns] = {}
        self._torn: dict[StepFile, str] = {}
        self._lock = threading.Lock()
        self.was_listed = False
        """Whether the snapshot says anything of the run yet."""
        self.look_s = 0.0
        """Seconds that the last look at the run's folders took."""
        self.snapshot = self._snapshot([])

    def refresh(self, budget_s: float | None = None) -> Snapshot:
        """Read what is new, newest steps first, for at most about `budget_s` seconds.

        Without a budget, all of it. With one, a caller that comes while another refreshes waits no
        longer than that for its turn.
        """
        deadline = math.inf if budget_s is None else time.monotonic() + budget_s
        if not self._lock.acquire(timeout=-1 if budget_s is None else budget_s):
            return self.snapshot
        try:
            started = time.monotonic()
            found = self.listing.look()
            self.look_s = time.monotonic() - started
            new = [file for file in found if file not in self._parts and file not in self._torn]
            self._read(new, deadline)
            there = set(found)
            if new or there != self._parts.keys() | self._torn.keys():
                self._parts = {file: part for file, part in self._parts.items() if file in there}
                self._torn = {file: note for file, note in self._torn.items() if file in there}
                self.snapshot = self._snapshot(found)
            self.was_listed = True
            return self.snapshot
        finally:
            self._lock.release()

    def recheck(self, files: Iterable[StepFile]) -> None:
        """Look at the disk again for files that turned out to have changed."""
        with self._lock:
            self.listing.forget(files)

    def _read(self, files: list[StepFile], deadline: float) -> None:
        tables: dict[StepFile, pa.Table] = {}

        def look(file: StepFile) -> None:
            try:
                tables[file] = read_numbers(file)
            except Torn as error:
                self._torn[file] = str(error)
            except Changed:
                self.listing.forget([file])

        each_until(files, look, deadline)
        self._parts |= columns_of(tables, self.names)

    def _snapshot(self, found: list[StepFile]) -> Snapshot:
        files = [file for file in found if file in self._parts]
        columns = joined([self._parts[file] for file in files])
        lengths = [len(self._parts[file]) for file in files]
        starts = np.cumsum([0, *lengths])
        for number, file in enumerate(files):  # views, so that nothing is held twice
            self._parts[file] = columns.part(int(starts[number]), int(starts[number + 1]))
        return Snapshot(
            files=tuple(files),
            starts=starts,
            columns=columns,
            names=self.names,
            num_pending=sum(f not in self._parts and f not in self._torn for f in found),
            notes=tuple(self._torn[file] for file in found if file in self._torn),
        )
