"""The stored rows of one group or one sample, with all their columns."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cluster.rollouts.files import Changed, StepFile, Torn, files_of_step, opened
from cluster.rollouts.rows import number
from configs.errors import ConfigError

TRIES = 3
"""A step that is written anew while it is read is there a moment later."""


def stored_rows(
    run_dir: Path, step: int, group_id: int, sample: int | None = None
) -> list[dict[str, Any]]:
    """The rows of a group, or of one sample of it, that a step used; empty where it used none.

    Raises ConfigError where a file of the step cannot be read, and the others hold no such row.
    """
    for tries in range(TRIES):
        notes: list[str] = []
        try:
            for file in files_of_step(run_dir, step):
                try:
                    if rows := _rows_in(file, group_id, sample):
                        return rows
                except Torn as error:
                    notes.append(str(error))
        except Changed as error:
            if tries == TRIES - 1:
                raise ConfigError(f"step {step} is written anew ({error}): ask again") from error
            continue
        if notes:
            raise ConfigError(" ".join(notes))
        break
    return []


def _rows_in(file: StepFile, group_id: int, sample: int | None) -> list[dict[str, Any]]:
    with opened(file) as parquet:
        names = parquet.read(range(parquet.num_groups), ("group_id", "sample"))
        is_it = names["group_id"].to_numpy() == group_id
        if sample is not None:
            is_it &= names["sample"].to_numpy() == sample
        at = np.flatnonzero(is_it)
        offsets = parquet.offsets
        rows: list[dict[str, Any]] = []
        for group in np.unique(np.searchsorted(offsets, at, side="right") - 1):
            inside = at[(at >= offsets[group]) & (at < offsets[group + 1])] - offsets[group]
            rows += parquet.read([int(group)]).take(inside).to_pylist()
    return rows


def num_tokens(row: Mapping[str, Any]) -> int:
    """Of a row's reply."""
    return len(row.get("tokens") or [])


def named_rewards(row: Mapping[str, Any]) -> dict[str, float | None]:
    """A row's rewards by name."""
    return {name: number(value) for name, value in row.get("rewards") or []}
