"""What makes a checkpoint: its name, its manifest, and which of several goes on with a run.

A run that goes back to step 10 begins another attempt, and what earlier attempts saved after step
10 is no longer of this run: had a learner that was cut off finished its upload later, going on from
there would use groups twice. So each attempt notes where it began, and

    a checkpoint of step s and attempt a counts  ⇔  s ≤ where each attempt after a began.
"""

import json
import logging
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.checkpoints.store import ATTEMPTS, MANIFEST, Store, Stored

logger = logging.getLogger(__name__)

INSIDE = re.compile(r"rank=\d+(/(?!\.\.?(/|$))[^/]+)+")
"""Files of a rank: no way leads out of its folder."""
NAME = re.compile(r"step=(\d+)\.attempt=(\d+)")


@dataclass(frozen=True, kw_only=True, order=True)
class Saved:
    """One checkpoint in a store, whole or not."""

    step: int
    attempt: int

    @property
    def name(self) -> str:
        """Its folder."""
        return f"step={self.step:06d}.attempt={self.attempt}"

    def part(self, rank: int) -> str:
        """The file that says a rank's part is there."""
        return f"{self.name}/rank={rank}.json"

    @property
    def manifest(self) -> str:
        """The file that says all of it is there."""
        return f"{self.name}/{MANIFEST}"


class Torn(Exception):
    """A checkpoint that is not what its manifest says; the message says what is wrong."""


def all_saved(store: Store) -> list[Saved]:
    """Every checkpoint of the store, finished or not, oldest first."""
    found = [NAME.fullmatch(name) for name in store.names()]
    return sorted(Saved(step=int(m[1]), attempt=int(m[2])) for m in found if m)


def began_at(store: Store) -> dict[int, int]:
    """Attempt -> the step it began after, of all attempts of the run so far."""
    try:
        noted = json.loads(store.read(ATTEMPTS))
        return {int(attempt): int(step) for attempt, step in noted.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        # Then every checkpoint that an attempt left behind counts, and no number is taken twice.
        logger.warning("%s/%s is torn: reading the names of checkpoints", store.name, ATTEMPTS)
        return {saved.attempt: saved.step for saved in all_saved(store)}


def begin_attempt(store: Store, step: int) -> int:
    """Note that another attempt begins after `step`; its number, counted from 1."""
    began = began_at(store)
    number = max(began, default=0) + 1
    store.write(ATTEMPTS, json.dumps(began | {number: step}).encode())
    return number


def counting(store: Store, others: Iterable[Saved] = ()) -> list[Saved]:
    """The checkpoints that the run could go on from, finished or not, newest first.

    `others` are some of which the store may hold nothing yet.
    """
    began = began_at(store)
    return [
        saved
        for saved in sorted({*all_saved(store), *others}, reverse=True)
        if all(saved.step <= step for later, step in began.items() if later > saved.attempt)
    ]


def written(files: dict[str, Stored], **facts: Any) -> bytes:
    """A manifest: the facts, and size and digest of every file."""
    listed = {name: asdict(stored) for name, stored in sorted(files.items())}
    return json.dumps({**facts, "files": listed}, indent=1).encode()


def upload_part(store: Store, saved: Saved, rank: int, world_size: int, folder: Path) -> None:
    """Upload the files of a rank, and at last the note that all of them are there."""
    files: dict[str, Stored] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = f"rank={rank}/{path.relative_to(folder).as_posix()}"
        files[name] = store.put(path, f"{saved.name}/{name}")
    store.write(saved.part(rank), written(files, world_size=world_size))


def write_manifest(store: Store, saved: Saved, world_size: int) -> int:
    """Say that a checkpoint is whole, once all ranks have said so of their parts; its bytes.

    Raises Torn where a part is missing.
    """
    files: dict[str, Stored] = {}
    for rank in range(world_size):
        files |= read_files(store, saved.part(rank))
    facts = {"step": saved.step, "attempt": saved.attempt, "world_size": world_size}
    store.write(saved.manifest, written(files, **facts))
    return sum(stored.size for stored in files.values())


def read_files(store: Store, name: str) -> dict[str, Stored]:
    """The files that a manifest lists; raises Torn where it is not there or not whole."""
    try:
        listed = json.loads(store.read(name))["files"]
        if outside := [file for file in listed if not INSIDE.fullmatch(file)]:
            raise Torn(f"{name} names a file outside of the checkpoint: {outside[0]}")
        return {file: Stored(entry["size"], entry["sha256"]) for file, entry in listed.items()}
    except FileNotFoundError:
        raise Torn(f"{name} is missing: the checkpoint was never finished") from None
    except (ValueError, TypeError, KeyError):
        raise Torn(f"{name} is torn") from None
