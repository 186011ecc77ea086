"""Rows of a user's file: JSONL, JSON and Parquet (also gzipped), folders of them, and folders that
the Hugging Face `datasets` library saved.

Arrow files are read with pyarrow, so `datasets` itself is not needed. Every row remembers where it
stood, because every later refusal has to name the line.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

FORMATS = (".jsonl", ".json", ".parquet")
"""Read as they are, or with `.gz` behind."""

_SPLIT_NAME = re.compile(r"(train|test|validation|valid|val|dev|eval)(?![a-zA-Z])")


class Row(dict[str, Any]):
    """One row, a plain dict of its columns, which knows its place in the source."""

    __slots__ = ("where",)

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        super().__init__(values)
        self.where = where
        """For error messages: `FILE line 17` in JSONL, `FILE row 17` elsewhere; from 1."""


def read_rows(path: str | Path) -> list[Row]:
    """All rows of a file or folder, in order; `FOLDER:SPLIT` picks one split of a folder.

    A folder with several splits gives `train`. Raises `ValueError` for a source that is missing,
    empty, damaged, or not made of objects.
    """
    source, split = _locate(str(path))
    if source.is_dir():
        rows = _read_folder(source, split)
    elif split is not None:
        raise ValueError(f"{source} is a file, so it has no split `{split}`: leave `:{split}` away")
    else:
        rows = _read_file(source)
    if not rows:
        raise ValueError(f"{path} holds no rows: check how it was written")
    return rows


def _locate(path: str) -> tuple[Path, str | None]:
    """Existing file or folder, and the split that was asked for behind a colon."""
    if Path(path).exists():
        return Path(path), None
    folder, colon, split = path.rpartition(":")
    if colon and split and Path(folder).exists():
        return Path(folder), split
    raise ValueError(f"{path} does not exist: give a local file or folder")


# -- folders -------------------------------------------------------------------------------------


def _read_folder(folder: Path, split: str | None) -> list[Row]:
    if (folder / "dataset_dict.json").exists():
        splits = {name: folder / name for name in _metadata(folder, "dataset_dict.json", "splits")}
        return _read_arrow_folder(splits[_choose_split(folder, list(splits), split)])
    if (folder / "state.json").exists() or any(folder.glob("*.arrow")):
        if split is not None:
            raise ValueError(f"{folder} is one split already: leave `:{split}` away")
        return _read_arrow_folder(folder)
    return [row for file in _files_of(folder, split) for row in _read_file(file)]


def _files_of(folder: Path, split: str | None) -> list[Path]:
    """The folder's data files in name order, only those of one split where names tell splits."""
    files = sorted(
        file
        for file in folder.iterdir()
        if file.is_file() and not file.name.startswith(".") and _format(file) in FORMATS
    )
    if not files:
        raise ValueError(f"{folder} holds no {', '.join(FORMATS)} or .arrow file: name another one")
    split_of = {}
    for file in files:
        match = _SPLIT_NAME.match(file.name)
        split_of[file] = match.group(1) if match else file.name.partition(".")[0]
    # Only names such as test-00000.parquet say that files are splits; shard names do not.
    if split is None and not any(_SPLIT_NAME.fullmatch(name) for name in split_of.values()):
        return files
    chosen = _choose_split(folder, sorted(set(split_of.values())), split)
    return [file for file in files if split_of[file] == chosen]


def _choose_split(folder: Path, splits: list[str], wanted: str | None) -> str:
    chosen = wanted or "train"
    if chosen not in splits:
        raise ValueError(
            f"{folder} has no split `{chosen}` but {', '.join(splits)}: name one as {folder}:SPLIT"
        )
    return chosen


def _read_arrow_folder(folder: Path) -> list[Row]:
    """A saved `datasets` split: state.json names the shards, each an Arrow IPC stream."""
    if (folder / "state.json").exists():
        listed = _metadata(folder, "state.json", "_data_files")
        files = [folder / entry["filename"] for entry in listed]
    else:
        files = sorted(folder.glob("*.arrow"))
    for file in files:
        if not file.exists():
            raise ValueError(f"{file} does not exist though its folder lists it: save it again")
    return [row for file in files for row in _rows_of_table(_read_arrow(file), file)]


def _metadata(folder: Path, name: str, key: str) -> Any:
    try:
        return json.loads((folder / name).read_bytes())[key]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / name} is damaged, no `{key}`: save the folder again"
        ) from error


# -- files ---------------------------------------------------------------------------------------


def _format(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).suffix


def _read_file(file: Path) -> list[Row]:
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}
    if _format(file) not in readers:
        known = ", ".join(FORMATS)
        raise ValueError(f"{file} is of no known format: {known} are read, also with .gz behind")
    if file.stat().st_size == 0:
        raise ValueError(f"{file} is empty: write or download it again")
    try:
        with _open(file) as stream:
            return list(readers[_format(file)](file, stream))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{file} is not a complete gzip file ({error}): write or download it again"
        ) from error


def _open(file: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file)) if file.suffix == ".gz" else file.open("rb")


def _read_jsonl(file: Path, stream: BinaryIO) -> Iterator[Row]:
    # A binary stream breaks lines at \n alone; text may hold other line separators inside strings.
    for number, line in enumerate(stream, 1):
        if line.strip():
            yield _row(_parse(line, f"{file} line {number}"), f"{file} line {number}")


def _read_json(file: Path, stream: BinaryIO) -> Iterator[Row]:
    rows = _parse(stream.read(), str(file))
    if not isinstance(rows, list):
        raise ValueError(
            f"{file} holds one {type(rows).__name__}, not a list of rows: write [...], or one "
            "object per line as .jsonl"
        )
    for number, row in enumerate(rows, 1):
        yield _row(row, f"{file} row {number}")


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid JSON ({error}): correct or remove it") from error


def _row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise ValueError(
            f"{where}: a row must be an object with named columns, not a {type(value).__name__}"
        )
    return Row(value, where)


def _read_parquet(file: Path, stream: BinaryIO) -> Iterator[Row]:
    content = pa.BufferReader(stream.read())
    try:
        table = pq.read_table(content)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(_damaged(file, "Parquet", error)) from error
    return _rows_of_table(table, file)


def _read_arrow(file: Path) -> pa.Table:
    try:
        source = pa.memory_map(str(file))
        return pa.ipc.open_stream(source).read_all()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(_damaged(file, "Arrow", error)) from error


def _rows_of_table(table: pa.Table, file: Path) -> Iterator[Row]:
    number = 0
    for batch in table.to_batches():
        for values in batch.to_pylist():
            number += 1
            yield Row(values, f"{file} row {number}")


def _damaged(file: Path, kind: str, error: Exception) -> str:
    reason = str(error).partition("\n")[0]
    return f"{file} is not a complete {kind} file ({reason}): write or download it again"
