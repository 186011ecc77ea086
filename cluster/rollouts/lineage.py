"""Where a sample came from and what became of it: data row, ledger, step, weights."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.checkpoints.manifest import NAME, counting
from cluster.checkpoints.store import PLACE, Store
from cluster.run_record import read_config


@dataclass(frozen=True, kw_only=True)
class Span:
    """Reply tokens `start` to `end` (exclusive) were drawn from policy `version`."""

    version: int
    start: int
    end: int
    weights: list[str]
    """Where the weights of that version still are, as paths; empty where nowhere."""


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What a sample is made of, and what used it."""

    group_id: int
    sample: int
    step: int
    """The learner step that used it."""
    spans: list[Span]
    """Which version wrote which tokens."""
    engine: str
    attempts: int | None
    """Tries it took to sample and score the group."""
    seed: int | None
    prompt_row: int | None
    """Row of the data file, counted from 0."""
    data_file: str | None
    """`data.train` of the run."""
    ledger: Mapping[str, Any] | None
    """The group's row; None where the ledger has none."""
    metrics: Mapping[str, Any] | None
    """The step's row of metrics.jsonl."""


def section(run_dir: Path, name: str) -> Mapping[str, Any]:
    """One section of a run's config.yaml; empty where there is none, or where it is damaged."""
    file = run_dir / "config.yaml"
    try:
        found = _config(file, file.stat().st_mtime_ns).get(name)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@lru_cache(maxsize=8)
def _config(file: Path, mtime_ns: int) -> dict[str, Any]:
    """Kept, since YAML is slow to read; `mtime_ns` tells another one."""
    return read_config(file)


def ledger_row(run_dir: Path, step: int, group_id: int) -> dict[str, Any] | None:
    """The row of a group at a step; None where the ledger has none, or its file is damaged."""
    try:
        with pq.ParquetFile(run_dir / "ledger" / f"step={step:06d}.parquet") as file:
            rows = file.read().to_pylist()
    except (pa.ArrowException, OSError):
        return None
    return next((row for row in rows if row["group_id"] == group_id), None)


def metrics_row(run_dir: Path, step: int) -> dict[str, Any] | None:
    """The step's last row of metrics.jsonl; None where it has none that is whole."""
    try:
        lines = (run_dir / "metrics.jsonl").read_bytes().splitlines()
    except OSError:
        return None
    wanted = f'"step": {step},'.encode()
    for line in reversed(lines):
        if wanted in line[:64]:
            try:
                return dict(json.loads(line))
            except (ValueError, TypeError):  # torn
                continue
    return None


def weights_of(run_dir: Path, version: int) -> list[str]:
    """Paths of what still holds the weights of a policy version: the policy after that step."""
    found = _checkpoints(run_dir, version)
    moved = run_dir / "references" / f"step={version:06d}"
    model = section(run_dir, "model")
    if moved.is_dir() and model.get("reference_update") == "reset":
        found.append(str(moved))
    num_steps = section(run_dir, "algorithm").get("num_steps")
    is_last = version == num_steps and metrics_row(run_dir, version) is not None
    if is_last and (run_dir / "policy").is_dir():
        found.append(str(run_dir / "policy"))
    path = model.get("path")
    if version == 0 and path and os.path.isdir(path):
        found.append(str(path))
    return found


def _checkpoints(run_dir: Path, version: int) -> list[str]:
    """Whole checkpoints of a step, in the run folder or in the local folder that it names."""
    folder = run_dir / "checkpoints"
    try:
        folder = Path(json.loads((run_dir / PLACE).read_text())["folder"])
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError):
        return []
    if not folder.is_dir():  # also a store that only its own tools reach
        return []
    store = Store(folder)
    own = [one for one in counting(store) if one.step == version and NAME.fullmatch(one.name)]
    return [str(folder / one.name) for one in own if store.has(one.manifest)]
