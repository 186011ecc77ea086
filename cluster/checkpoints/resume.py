"""Going on from the newest checkpoint that is whole, at whatever world size there is.

rank 0: newest that counts ─▶ every node fetches it and compares digests ─▶ all agree: load
                                                      one differs: the checkpoint before
"""

import itertools
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cluster.checkpoints.leftover import finish_leftovers, upload_leftovers
from cluster.checkpoints.manifest import (
    Saved,
    Torn,
    began_at,
    begin_attempt,
    counting,
    read_files,
)
from cluster.checkpoints.store import Store
from cluster.errors import Unrecoverable
from cluster.events import record
from cluster.space import room

logger = logging.getLogger(__name__)

Load = Callable[[Path, Path], None]
"""(folder of a checkpoint, folder to work in) -> nothing; a collective."""


class CheckpointsLost(Unrecoverable):
    """A run had checkpoints, and none of them is whole."""


def fetch(store: Store, saved: Saved, target: Path) -> None:
    """Put the files of all ranks of a checkpoint together under `target`.

    Raises Torn where one is missing or another than was saved.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name, stored in read_files(store, saved.manifest).items():
        try:
            found = store.get(f"{saved.name}/{name}", target / name.partition("/")[2])
        except FileNotFoundError:
            raise Torn(f"{saved.name}/{name} is missing") from None
        if found.size != stored.size:
            raise Torn(f"{saved.name}/{name} has {found.size} bytes instead of {stored.size}")
        if found.sha256 != stored.sha256:
            raise Torn(f"{saved.name}/{name} differs from what was saved (SHA-256)")


def resume(store: Store, scratch: Path, load: Load, run_dir: str) -> tuple[int, int]:
    """Load the newest whole checkpoint, if there is one; a collective.

    One that was on its way when its attempt was killed is uploaded first.

    Args:
        store: of the run.
        scratch: a folder for this rank's node.
        load: takes a checkpoint up.
        run_dir: where torn ones are noted.

    Returns:
        (step the run goes on after, number of this attempt); the step is 0 where the run has never
        saved a checkpoint.

    Raises:
        CheckpointsLost: it has, but none is whole.
    """
    is_first = dist.get_rank() == 0
    if _local_rank() == 0:
        with room(store.name, "a checkpoint that was on its way"):
            upload_leftovers(store, scratch)
    dist.barrier()
    if is_first:
        finish_leftovers(store, run_dir)
    waiting = iter(counting(store)) if is_first else iter(())
    torn: list[str] = []
    step = 0
    for _ in itertools.count():
        saved: Saved | None = _from_first(next(waiting, None))
        if saved is None:
            _refuse_to_begin_anew(store, torn, is_first)
            break
        folder, reason = _fetched(store, saved, scratch)
        if reason is None:
            load(folder, scratch / "work")
            step = saved.step
            break
        torn.append(reason)
        if is_first:
            logger.warning("checkpoint of step %d is torn: %s", saved.step, reason)
            record(run_dir, "checkpoint_torn", step=saved.step, reason=reason)
    dist.barrier()
    if _local_rank() == 0:
        for left in scratch.glob("*"):
            shutil.rmtree(left, ignore_errors=True)
    with room(store.name, "the note of this attempt"):
        attempt = _from_first(begin_attempt(store, step) if is_first else None)
    return step, attempt


def _fetched(store: Store, saved: Saved, scratch: Path) -> tuple[Path, str | None]:
    """The folder this node has the checkpoint in, and what is wrong with it on any node."""
    folder, reason = scratch / "resume", None
    if _local_rank() == 0:
        try:
            with room(scratch, f"the copy of the checkpoint of step {saved.step}"):
                fetch(store, saved, folder)
        except Torn as error:
            reason = str(error)
    answers: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(answers, (folder, reason))
    found = next((text for _, text in answers if text is not None), None)
    return answers[dist.get_rank() - _local_rank()][0], found  # ranks are numbered node by node


def _refuse_to_begin_anew(store: Store, torn: list[str], is_first: bool) -> None:
    """What is torn because it never was finished is no loss where nothing else ever was."""
    had = is_first and (
        any(began_at(store).values()) or any(store.has(saved.manifest) for saved in counting(store))
    )
    if _from_first(had):
        raise CheckpointsLost(
            f"no checkpoint in {store.name} is whole: {'; '.join(torn) or 'all are gone'}. Put "
            "one back from a copy and go on with --resume, or begin the run anew in another "
            "cluster.run_dir"
        )


def _from_first(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))
