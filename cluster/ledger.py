"""The ledger: which prompt group was used at which learner step, written once per step.

`ledger/step=000012.parquet` appears, whole, when step 12 has been learned from. A group counts as
used when its row is there. Going back to a checkpoint of step s moves the files of later steps to
`discarded/`: those steps are run again, and their groups with them.
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.dataset import dataset

from cluster.space import room

SCHEMA = pa.schema(
    [
        ("group_id", pa.int64()),
        ("status", pa.string()),
        ("step", pa.int64()),
        ("attempts", pa.int32()),
        ("engine", pa.string()),
        ("oldest_version", pa.int64()),
        ("newest_version", pa.int64()),
        ("num_samples", pa.int32()),
        ("num_tokens", pa.int64()),
    ]
)


USED, FILTERED, UNLABELLED = "used", "filtered", "unlabelled"
ROWS_PER_GROUP = 512
"""Of a Parquet file: whoever looks at one sample reads so many at most."""


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """One prompt group of one learner step."""

    group_id: int
    status: str
    """`used`; `filtered`: sampled and scored, but all its replies scored the same; `unlabelled`:
    sampled, but not worth a label."""
    step: int
    attempts: int
    engine: str
    oldest_version: int
    newest_version: int
    num_samples: int
    num_tokens: int


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file that is either whole or not there; raises StorageFull."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with room(path.parent, path.name):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, partial, row_group_size=ROWS_PER_GROUP)
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


class Ledger:
    """Used groups by step, on disk.

    >>> # ledger.commit(12, rows); ledger.rewind(10); ledger.progress()
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = Path(run_dir)
        self.folder = self.run_dir / "ledger"

    def commit(self, step: int, rows: Iterable[LedgerRow]) -> None:
        """Record the groups that `step` learned from."""
        table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
        write_table(table, self.folder / f"step={step:06d}.parquet")

    def rewind(self, step: int) -> int:
        """Discard what was recorded after `step`; returns how many steps that were."""
        later = [file for file in self._files() if _step(file) > step]
        for file in later:
            self._discard(file)
        for folder in (self.run_dir / "experience").glob("step=*"):
            if _step(folder) > step:
                self._discard(folder)
        return len(later)

    def _discard(self, path: Path) -> None:
        target = self.run_dir / "discarded" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)

    def progress(self) -> tuple[set[int], dict[int, int]]:
        """Ids of all groups that were learned from, and of each step the replies judged for it."""
        files = [str(file) for file in self._files()]
        if not files:
            return set(), {}
        columns = ["group_id", "status", "step", "num_samples"]
        table = dataset(files, schema=SCHEMA).to_table(columns=columns)
        judged = table.filter(pc.field("status") != UNLABELLED)
        sums = judged.group_by("step").aggregate([("num_samples", "sum")])
        labels = zip(sums["step"].to_pylist(), sums["num_samples_sum"].to_pylist(), strict=True)
        return set(table["group_id"].to_pylist()), dict(labels)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("step=*.parquet"))


def read_ledger(run_dir: str | Path) -> pa.Table:
    """All rows, ordered by step; raises ValueError where a file is damaged."""
    files = sorted((Path(run_dir) / "ledger").glob("step=*.parquet"))
    tables = [_read(file) for file in files]
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()


def _read(file: Path) -> pa.Table:
    try:
        return pq.ParquetFile(file).read()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{file} is damaged ({error}): which groups its step used is lost; restore the file "
            "from a copy of the run folder"
        ) from error


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step="))


def labels_in(rows: Iterable[LedgerRow]) -> int:
    """Replies of these groups that were judged."""
    return sum(row.num_samples for row in rows if row.status != UNLABELLED)
