"""Runs of a few samples, written by the writers of a real run: input for what reads samples."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml

from cluster.groups import ledger_row
from cluster.ledger import Ledger, write_table
from cluster.rollouts.browser import RolloutBrowser
from cluster.rollouts.query import Query
from rl.experience import build_batch, experience_table
from rl.types import Experience, Prompt, Rollout, Source, VersionSpan

NUM_PROMPTS = 6
SHORT = ("num_tokens", "advantage", "staleness", "newest_version")
"""Columns that runs of before lack."""


def prompt_text(row: int) -> str:
    return f"Question {row}: what is {row} plus {row}?"


def reply_text(group_id: int, sample: int) -> str:
    return f"Reply {sample} of group {group_id}. " + "Straße und Ärger. " * (sample == 1)


def reply(
    step: int,
    group_id: int,
    sample: int,
    *,
    versions: Sequence[int] = (),
    num_tokens: int | None = None,
    source: Source = "policy",
    text: str | None = None,
    label: float | None = None,
) -> Rollout:
    """2 to 4 tokens by `versions`, each of which wrote at least one; the step's own by default."""
    versions = versions or (step - 1,)
    count = num_tokens or 2 + (group_id + sample) % 3
    edges = [0, *range(1, len(versions)), count]
    return Rollout(
        group_id=group_id,
        sample=sample,
        prompt=Prompt(
            row=group_id % NUM_PROMPTS,
            text=prompt_text(group_id % NUM_PROMPTS),
            tokens=(1, 2, 3),
            extra={"kind": "sum"},
        ),
        tokens=np.arange(10, 10 + count, dtype=np.int32),
        text=reply_text(group_id, sample) if text is None else text,
        rollout_logprobs=-np.arange(1, count + 1, dtype=np.float32),
        versions=tuple(
            VersionSpan(version=version, start=start, end=end)
            for version, start, end in zip(versions, edges[:-1], edges[1:], strict=True)
        ),
        finish_reason="length" if sample == 2 else "stop",
        seed=100 * group_id + sample,
        engine=f"engine-{group_id % 2}" if source == "policy" else source,
        source=source,
        label=label,
    )


def score_of(group_id: int, sample: int) -> float:
    """Different for every sample, and out of order."""
    return ((7 * group_id + 3 * sample) % 11) / 4 - 1 + group_id / 1024


def table_of(step: int, groups: Sequence[Sequence[Rollout]], *, has_advantages: bool = True) -> Any:
    """Rows as the learner writes them; advantages are 0.5, -0.5, 0.5, ... above the score."""
    experiences = [
        Experience(
            rollouts=tuple(group),
            rewards={
                "gold": tuple(score_of(r.group_id, r.sample) / 2 for r in group),
                "gold/polite": tuple(float(r.sample) for r in group),
            },
            ref_logprobs=tuple(np.full(len(r.tokens), -0.5, np.float32) for r in group),
            attempts=1 + group[0].group_id % 2,
        )
        for group in groups
    ]
    batch = build_batch(experiences, pad_token_id=0)
    rollouts = [rollout for group in groups for rollout in group]
    scores = torch.tensor([score_of(r.group_id, r.sample) for r in rollouts], dtype=torch.float64)
    wave = torch.arange(batch.tokens.shape[1]) % 2 - 0.5
    return experience_table(
        step,
        experiences,
        batch,
        old_logprobs=torch.full(batch.tokens.shape, -0.75),
        advantages=(wave + scores[:, None]).float() if has_advantages else None,
        scores=scores,
    )


def file_of(run_dir: Path, step: int, rank: int = 0) -> Path:
    return run_dir / "experience" / f"step={step:06d}" / f"rank={rank}.parquet"


def write_step(
    run_dir: Path,
    step: int,
    groups: Sequence[Sequence[Rollout]],
    *,
    rank: int = 0,
    has_advantages: bool = True,
    is_old: bool = False,
) -> None:
    """One rank's file of a step, as the learner writes it; `is_old`: as it did before."""
    table = table_of(step, groups, has_advantages=has_advantages)
    write_table(table.drop_columns(SHORT) if is_old else table, file_of(run_dir, step, rank))


def groups_of(step: int, num_groups: int = 2, size: int = 3) -> list[list[Rollout]]:
    """Groups 2s-2 and 2s-1 of step s; sample 1 is a version older, sample 2 by two versions."""
    ids = range((step - 1) * num_groups, step * num_groups)
    by = {1: (max(step - 2, 0),), 2: tuple(sorted({max(step - 3, 0), step - 1}))}
    return [[reply(step, g, k, versions=by.get(k, ())) for k in range(size)] for g in ids]


def write_run(
    run_dir: Path, num_steps: int = 4, *, is_old: bool = False, **settings: dict[str, Any]
) -> Path:
    """A run of 2 groups of 3 samples a step, with ledger, metrics, configuration and data file."""
    run_dir.mkdir(parents=True, exist_ok=True)
    data = run_dir / "prompts.jsonl"
    rows = [{"prompt": prompt_text(row), "kind": "sum"} for row in range(NUM_PROMPTS)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config: dict[str, dict[str, Any]] = {
        "model": {"path": str(run_dir / "model"), "reference_update": "frozen"},
        "data": {"train": str(data), "seed": 0, "pairing": "none"},
        "feedback": {"curate_by": None, "curate_margin": 0.0},
        "algorithm": {"name": "rloo", "num_steps": num_steps, "max_staleness": 2},
    }
    for section, values in settings.items():
        config[section] |= values
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    for step in range(1, num_steps + 1):
        groups = groups_of(step)
        write_step(run_dir, step, groups, is_old=is_old)
        attempts = [1 + group[0].group_id % 2 for group in groups]
        rows = [ledger_row(step, g, attempts=n) for g, n in zip(groups, attempts, strict=True)]
        Ledger(run_dir).commit(step, rows)
        add_metrics(run_dir, step)
    return run_dir


def add_metrics(run_dir: Path, step: int) -> None:
    row = {"step": step, "policy_version": step, "staleness/max": 2.0, "reward/total/mean": 0.25}
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def stored(run_dir: Path) -> list[dict[str, Any]]:
    """All rows of a run, read in the plainest way: newest step first, then as they stand."""
    files = sorted(
        (run_dir / "experience").glob("*/*.parquet"), key=lambda f: f.parent, reverse=True
    )
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


def name_of(row: dict[str, Any]) -> str:
    return f"{row['step']}-{row['group_id']}-{row['sample']}"


def browse(run_dir: Path) -> RolloutBrowser:
    """With all of the run indexed, however slow the machine is."""
    browser = RolloutBrowser(run_dir)
    assert browser.refresh() == 0
    return browser


def ids(browser: RolloutBrowser, **query: Any) -> list[str]:
    return [row.id for row in browser.query(Query(**query)).rows]
