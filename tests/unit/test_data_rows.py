import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rl.data.rows import read_rows

ROWS = [{"prompt": "a", "n": 1}, {"prompt": "b\u2028c", "n": 2}, {"prompt": "ü", "n": 3}]


def _content(suffix: str, rows: list[dict]) -> bytes:
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if suffix == ".json":
        return json.dumps(rows, indent=1).encode()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def _write(file: Path, rows: list[dict] = ROWS) -> Path:
    content = _content(Path(file.name.removesuffix(".gz")).suffix, rows)
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_every_format_gives_the_same_rows(tmp_path, suffix, packed):
    assert read_rows(_write(tmp_path / f"data{suffix}{packed}")) == ROWS


def test_a_folder_gives_its_files_in_name_order(tmp_path):
    _write(tmp_path / "part-1.parquet", ROWS[1:])
    _write(tmp_path / "part-0.jsonl.gz", ROWS[:1])
    (tmp_path / "README.md").write_text("about the data")
    assert read_rows(tmp_path) == ROWS


def test_files_named_after_splits_are_not_mixed(tmp_path):
    _write(tmp_path / "train-00000-of-00002.parquet", ROWS[:1])
    _write(tmp_path / "train-00001-of-00002.parquet", ROWS[1:2])
    _write(tmp_path / "test.jsonl", ROWS[2:])
    assert read_rows(tmp_path) == ROWS[:2]
    assert read_rows(f"{tmp_path}:test") == ROWS[2:]


def test_a_datasets_folder_is_read_with_all_its_shards(tmp_path):
    rows = [{"messages": [{"role": "user", "content": str(n)}]} for n in range(7)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved", num_shards=3)
    assert len(list((tmp_path / "saved").glob("*.arrow"))) == 3
    assert read_rows(tmp_path / "saved") == rows


@pytest.fixture
def saved_dict(tmp_path):
    splits = {"train": ROWS[:2], "test": ROWS[2:]}
    saved = datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in splits.items()})
    saved.save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_dataset_dict_gives_train_unless_a_split_is_named(saved_dict):
    assert read_rows(saved_dict) == ROWS[:2]
    assert read_rows(f"{saved_dict}:test") == ROWS[2:]
    with pytest.raises(ValueError, match=r"no split `dev` but train, test"):
        read_rows(f"{saved_dict}:dev")


def test_a_dataset_dict_without_train_names_its_splits(tmp_path):
    saved = datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS)})
    saved.save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"no split `train` but test"):
        read_rows(tmp_path / "saved")


def test_a_missing_arrow_shard_is_named(saved_dict):
    shard = next((saved_dict / "train").glob("*.arrow"))
    shard.unlink()
    with pytest.raises(ValueError, match=shard.name):
        read_rows(saved_dict)


def test_a_truncated_arrow_shard_is_refused(saved_dict):
    shard = next((saved_dict / "train").glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:150])
    with pytest.raises(ValueError, match="not a complete Arrow file"):
        read_rows(saved_dict)


def test_errors_name_the_line_that_an_editor_shows(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "a"}\n\n{"prompt": "b"\n')
    with pytest.raises(ValueError, match=r"data\.jsonl line 3: not valid JSON"):
        read_rows(file)
    file.write_text('{"prompt": "a"}\n["b"]\n')
    with pytest.raises(ValueError, match=r"line 2: a row must be an object .* not a list"):
        read_rows(file)
    file.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    with pytest.raises(ValueError, match=r"line 2: not valid JSON \('utf-8' codec"):
        read_rows(file)


def test_rows_know_their_place(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n')
    assert [row.where for row in read_rows(file)] == [f"{file} line 1", f"{file} line 3"]
    parquet = _write(tmp_path / "data.parquet")
    assert read_rows(parquet)[2].where == f"{parquet} row 3"


def _refuse_one_line(path, pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern) as caught:
        read_rows(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "pattern"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n\n", "holds no rows"),
        ("a.json", b"[]", "holds no rows"),
        ("a.json", b'{"data": []}', "holds one dict, not a list of rows"),
        ("a.json", b'[{"a": 1}, 2]', "row 2: a row must be an object"),
        ("a.json", b"[" * 100_000, "not valid JSON"),
        ("a.parquet", _content(".parquet", ROWS)[:-9], "not a complete Parquet file"),
        ("a.parquet", b"PAR1", "not a complete Parquet file"),
        ("a.jsonl.gz", b'{"a": 1}\n', "not a complete gzip file"),
        ("a.jsonl.gz", gzip.compress(_content(".jsonl", ROWS))[:-12], "not a complete gzip file"),
        ("a.csv", b"a,b\n", "no known format"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, name, content, pattern):
    (tmp_path / name).write_bytes(content)
    _refuse_one_line(tmp_path / name, rf"{name}.*{pattern}")


def test_corrupt_gzip_content_is_refused(tmp_path):
    packed = bytearray(gzip.compress(_content(".jsonl", ROWS)))
    packed[10] = 0xFF  # the first block claims a compression that does not exist
    (tmp_path / "a.jsonl.gz").write_bytes(bytes(packed))
    _refuse_one_line(tmp_path / "a.jsonl.gz", "not a complete gzip file")


def test_missing_sources_and_wrong_splits_are_refused(tmp_path):
    _refuse_one_line(tmp_path / "none.jsonl", r"none\.jsonl does not exist")
    _refuse_one_line(tmp_path, r"holds no \.jsonl")
    file = _write(tmp_path / "a.jsonl")
    _refuse_one_line(f"{file}:train", "is a file, so it has no split")
    _refuse_one_line(f"{tmp_path}:train", "no split `train` but a")
