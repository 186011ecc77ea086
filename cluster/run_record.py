"""Read a run directory back: metrics, configuration, summary and samples, also of a dead run.

A run can be killed in the middle of any write. Whatever is whole is read; whatever is torn is left
out and named in `RunRecord.notes`, so a report can say what it does not show.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

SAMPLE_COLUMNS = ["group_id", "sample", "prompt_row", "prompt", "reply", "score", "rewards"]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything a report says of one run."""

    path: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    """One per learner step, by step; where a resumed run repeated a step, its last row."""
    summary: dict[str, Any]
    """Empty where the run has not finished."""
    notes: tuple[str, ...]
    """What could not be read, one sentence each."""

    @property
    def method(self) -> str:
        """`algorithm.name` of the configuration, e.g. `rloo`; `run` where that is missing."""
        return str(self.section("algorithm").get("name") or self.summary.get("method") or "run")

    @property
    def num_steps(self) -> int | None:
        """Learner steps that the configuration asks for."""
        return self.section("algorithm").get("num_steps")

    @property
    def reward_names(self) -> list[str]:
        """Named rewards in the metrics, parts (`gold/polite`) included, the combined one not."""
        head, tail = "reward/", "/mean"
        keys = {key for row in self.rows for key in row}
        names = {key[len(head) : -len(tail)] for key in keys if key.startswith(head)}
        return sorted(name for name in names if name != "total" and f"{head}{name}{tail}" in keys)

    @property
    def gold_names(self) -> list[str]:
        """Rewards of kind `gold`: the truth, whether or not the run learned from it."""
        rewards = self.section("feedback").get("rewards") or {"gold": {"kind": "gold"}}
        kinds = {name: reward.get("kind") for name, reward in rewards.items()}
        return [name for name in self.reward_names if kinds.get(name) == "gold"]

    def section(self, name: str) -> dict[str, Any]:
        """One section of the configuration; empty where the run left none."""
        section = self.config.get(name)
        return section if isinstance(section, dict) else {}

    def series(self, metric: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric, at the steps that have it. NaN stays NaN."""
        rows = [row for row in self.rows if _is_number(row.get(metric))]
        return [row["step"] for row in rows], [float(row[metric]) for row in rows]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One reply and what its judges said."""

    prompt: str
    text: str
    rewards: dict[str, float]


def read_run(run_dir: Path) -> RunRecord:
    """Read `run_dir`; raises ValueError where it is no folder or its config.yaml is no YAML."""
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir}: no such run directory; give the folder of a run")
    rows, notes = _read_metrics(run_dir / "metrics.jsonl")
    summary: dict[str, Any] = {}
    if (run_dir / "summary.json").exists():
        try:
            summary = dict(json.loads((run_dir / "summary.json").read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            notes.append("summary.json: torn and left out.")
    return RunRecord(
        path=run_dir,
        config=read_config(run_dir / "config.yaml"),
        rows=rows,
        summary=summary,
        notes=tuple(notes),
    )


def sampled_replies(run_dir: Path, count: int) -> tuple[list[tuple[Reply, Reply]], list[str]]:
    """Replies of the earliest and of the latest step that are stored whole, and what was torn.

    Prompts that both steps drew come first. Within a group it is always the first sample, so no
    reply is picked for its looks.
    """
    folders = sorted((run_dir / "experience").glob("step=*"), key=_step_of)
    notes: list[str] = []
    first_folder, earliest = _first_whole(folders, notes)
    last_folder, latest = _first_whole(folders[::-1], notes)
    if first_folder == last_folder:
        return [], notes
    shared = [row for row in earliest if row in latest]
    alone_before = [row for row in earliest if row not in latest]
    alone_after = [row for row in latest if row not in earliest]
    pairs = [(row, row) for row in shared] + list(zip(alone_before, alone_after, strict=False))
    return [(earliest[one], latest[two]) for one, two in pairs[:count]], notes


def _read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    by_step: dict[int, dict[str, Any]] = {}
    num_torn = 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    for line in filter(str.strip, lines):
        try:
            row = json.loads(line)
            by_step[int(row["step"])] = row
        except (ValueError, TypeError, KeyError):  # torn, or a number left of a torn line
            num_torn += 1
    lines_are = "line is" if num_torn == 1 else "lines are"
    notes = [f"metrics.jsonl: {num_torn} {lines_are} torn and left out."] if num_torn else []
    return [by_step[step] for step in sorted(by_step)], notes


def read_config(path: Path) -> dict[str, Any]:
    """A run's config.yaml; empty where there is none. Raises ValueError where it is no YAML."""
    if not path.exists():
        return {}
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise ValueError(f"{path}: not YAML ({reason}); mend it") from error
    return config if isinstance(config, dict) else {}


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step="))


def _first_whole(folders: list[Path], notes: list[str]) -> tuple[Path | None, dict[int, Reply]]:
    """The first folder with a sample that can be read, and its samples."""
    for folder in folders:
        if samples := _first_samples(folder, notes):
            return folder, samples
    return None, {}


def _first_samples(folder: Path, notes: list[str]) -> dict[int, Reply]:
    """The first sample of each group in one step's files, by prompt row."""
    replies: dict[int, tuple[int, Reply]] = {}
    for path in sorted(folder.glob("*.parquet")):
        try:
            # Not pq.read_table: it would take `step=N` for a column and clash with the file's own.
            with pq.ParquetFile(path) as file:
                rows = file.read(columns=SAMPLE_COLUMNS).to_pylist()
        except pa.ArrowInvalid:
            note = f"{folder.name}/{path.name}: torn and left out."
            notes.extend([note] if note not in notes else [])
            continue
        for row in rows:
            known = replies.get(row["prompt_row"])
            if known is None or row["sample"] < known[0]:
                rewards = {"total": row["score"], **dict(row["rewards"] or [])}
                reply = Reply(prompt=row["prompt"], text=row["reply"], rewards=rewards)
                replies[row["prompt_row"]] = (row["sample"], reply)
    return {row: reply for row, (_, reply) in replies.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def finite(values: list[float]) -> list[float]:
    """The values without NaN and infinities."""
    return [value for value in values if math.isfinite(value)]
