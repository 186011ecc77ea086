"""Checkpoints that a killed attempt had copied to its nodes and not yet uploaded.

A step's checkpoint is copied within the step and uploaded beside the next ones. Were what is on its
way lost with a killed process, the run would go back by up to two intervals. So

    scratch/rank-K/step=S.attempt=A.of=N/    rank K's copy, once the records of step S are written

stays until it is uploaded, and the next attempt uploads what it finds. Once the parts of all ranks
are there the checkpoint is as whole as any. Only a node that is lost takes its copies along.
"""

import json
import logging
import re
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from cluster.checkpoints.manifest import (
    NAME,
    Saved,
    Torn,
    counting,
    upload_part,
    write_manifest,
)
from cluster.checkpoints.store import Store
from cluster.events import record

logger = logging.getLogger(__name__)

PLACE = re.compile(rf"rank-(\d+)/({NAME.pattern})\.of=(\d+)")


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """One rank's copy on this node."""

    saved: Saved
    rank: int
    world_size: int
    folder: Path


def leftover_name(saved: Saved, world_size: int) -> str:
    """Of the folder of a copy, under the rank's own."""
    return f"{saved.name}.of={world_size}"


def leftovers(scratch: Path) -> list[Leftover]:
    """The copies on this node."""
    found = []
    for folder in sorted(scratch.glob("rank-*/*")):
        match = PLACE.fullmatch(folder.relative_to(scratch).as_posix())
        if match:
            rank, _, step, attempt, world_size = match.groups()
            saved = Saved(step=int(step), attempt=int(attempt))
            found.append(
                Leftover(saved=saved, rank=int(rank), world_size=int(world_size), folder=folder)
            )
    return found


def upload_leftovers(store: Store, scratch: Path) -> None:
    """Upload this node's copies of checkpoints that are newer than all finished ones."""
    found = leftovers(scratch)
    newer = _unfinished(store, [one.saved for one in found])
    for one in found:
        if one.saved in newer and not store.has(one.saved.part(one.rank)):
            logger.info("uploading what was left of the checkpoint of step %d", one.saved.step)
            upload_part(store, one.saved, one.rank, one.world_size, one.folder)


def finish_leftovers(store: Store, run_dir: str) -> None:
    """Write the manifest of the newest checkpoint of which all parts have come since."""
    for saved in _unfinished(store):
        try:
            size = write_manifest(store, saved, _world_size(store, saved))
        except Torn:
            continue
        record(run_dir, "checkpoint_saved", step=saved.step, bytes=size, is_leftover=True)
        return


def _unfinished(store: Store, others: list[Saved] | None = None) -> list[Saved]:
    """Newer than all that are finished, newest first."""
    counted = counting(store, others or ())
    return list(takewhile(lambda saved: not store.has(saved.manifest), counted))


def _world_size(store: Store, saved: Saved) -> int:
    """As rank 0 noted it; raises Torn."""
    try:
        return int(json.loads(store.read(saved.part(0)))["world_size"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise Torn(f"{saved.part(0)} is missing or torn") from None
