"""Follow one sample through everything a run recorded, and say where two records disagree."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.ledger import USED, read_ledger
from cluster.rollouts.detail import Sample, read_sample
from cluster.rollouts.ids import SampleId
from cluster.rollouts.lineage import section
from cluster.rollouts.stored import stored_rows
from rl.data.layouts import Example, detect, normalise
from rl.data.rows import read_rows
from rl.data.template import conversation_text


def follow(run_dir: str | Path, sample_id: str) -> Sample:
    """The sample, once all records of it agree; raises AssertionError naming those that do not.

        prompt ◀─▶ data row    ledger ◀─▶ step ◀─▶ metrics row    tokens ◀─▶ version spans

    Reads all of the ledger and of the data file: for tests and doubts, not for pages.
    """
    run_dir, wanted = Path(run_dir), SampleId.parse(sample_id)
    sample = read_sample(run_dir, wanted)
    rows = stored_rows(run_dir, wanted.step, wanted.group_id)
    _check_data(run_dir, sample)
    _check_rows(wanted, rows)
    _check_ledger(run_dir, wanted, rows)
    _check_step(wanted, sample)
    for row in rows:
        _check_spans(run_dir, wanted, row)
    return sample


def _agree(what: str, one: object, other: object) -> None:
    assert one == other, f"{what}: {one!r} here, {other!r} there"


def _check_data(run_dir: Path, sample: Sample) -> None:
    """The prompt is what the data file says in its row."""
    file, row = sample.lineage.data_file, sample.lineage.prompt_row
    assert file is not None, f"{run_dir}/config.yaml names no data.train"
    assert row is not None, f"{sample.id} has no prompt_row"
    rows = read_rows(file)
    assert row < len(rows), f"{sample.id} is about row {row}, but {file} has {len(rows)}"
    example = normalise(rows[row], row, detect(rows[0]))
    _agree(f"prompt of {sample.id} and row {row} of {file}", sample.prompt, _text(example))


def _text(example: Example) -> str:
    return conversation_text(example.messages)


def _check_rows(wanted: SampleId, rows: list[dict[str, Any]]) -> None:
    """The group is stored once, whole, at this step."""
    numbers = sorted(row["sample"] for row in rows)
    _agree(f"samples of group {wanted.group_id}", numbers, list(range(len(rows))))
    for name in ("step", "prompt_row", "prompt"):
        found = {row[name] for row in rows}
        assert len(found) == 1, f"{name} of group {wanted.group_id} differs: {sorted(found)}"
    _agree("step of the folder and of its rows", wanted.step, rows[0]["step"])


def _check_ledger(run_dir: Path, wanted: SampleId, rows: list[dict[str, Any]]) -> None:
    """The ledger holds the group once, used at this step, with these samples."""
    name = f"group {wanted.group_id} in the ledger and in the experience"
    found = [r for r in read_ledger(run_dir).to_pylist() if r["group_id"] == wanted.group_id]
    assert len(found) == 1, f"group {wanted.group_id} is {len(found)} times in the ledger"
    (ledger,) = found
    versions = [span["version"] for row in rows for span in row["versions"]]
    _agree(f"{name}: status", ledger["status"], USED)
    _agree(f"{name}: step", ledger["step"], wanted.step)
    _agree(f"{name}: attempts", ledger["attempts"], rows[0]["attempts"])
    _agree(f"{name}: engine", ledger["engine"], _first(rows)["engine"])
    _agree(f"{name}: samples", ledger["num_samples"], len(rows))
    _agree(f"{name}: tokens", ledger["num_tokens"], sum(len(row["tokens"]) for row in rows))
    _agree(f"{name}: oldest version", ledger["oldest_version"], min(versions))
    _agree(f"{name}: newest version", ledger["newest_version"], max(versions))


def _first(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return min(rows, key=lambda row: row["sample"])


def _check_step(wanted: SampleId, sample: Sample) -> None:
    """metrics.jsonl has the step, and a staleness that covers this sample's."""
    metrics = sample.lineage.metrics
    assert metrics is not None, f"metrics.jsonl has no row of step {wanted.step}"
    _agree(f"policy_version of step {wanted.step}", metrics["policy_version"], wanted.step)
    oldest = metrics.get("staleness/max")
    assert sample.staleness is None or oldest is None or sample.staleness <= oldest, (
        f"staleness of {sample.id}: {sample.staleness} here, at most {oldest} in metrics.jsonl"
    )


def _check_spans(run_dir: Path, wanted: SampleId, row: Mapping[str, Any]) -> None:
    """Versions follow each other over all tokens, none is of the future, and none too old."""
    name = f"sample {row['sample']} of group {wanted.group_id}"
    spans, count = row["versions"], len(row["tokens"])
    edges = [0, *(span["end"] for span in spans)]
    _agree(f"spans of {name}", [span["start"] for span in spans], edges[:-1])
    _agree(f"last span and tokens of {name}", edges[-1], count)
    versions = [span["version"] for span in spans]
    _agree(f"order of the versions of {name}", versions, sorted(versions))
    assert versions[-1] < wanted.step, f"{name} was written by {versions} before {wanted.step}"
    for column in ("rollout_logprobs", "old_logprobs", "ref_logprobs", "advantages"):
        if row[column] is not None:
            _agree(f"{column} and tokens of {name}", len(row[column]), count)
    age = wanted.step - 1 - versions[0]
    limit = section(run_dir, "algorithm").get("max_staleness")
    is_policy = row["source"] == "policy"
    assert limit is None or not is_policy or age <= limit, (
        f"{name} is {age} versions old, algorithm.max_staleness is {limit}"
    )
    short = {
        "num_tokens": count,
        "newest_version": versions[-1],
        "staleness": age if is_policy else None,
    }
    for column, value in short.items():
        if column in row:  # runs of before had no such columns
            _agree(f"{column} of {name}", row[column], value)
