"""A disk without room, told from other errors and named: no matter which library ran into it."""

import errno
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import StorageFull

logger = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)
TEXTS = ("No space left on device", "os error 28", "Disk quota exceeded", "os error 122")
"""What libraries written in other languages say of it; safetensors raises no OSError."""
TORCH = ("PytorchStreamWriter", "inline_container.cc", "iostream error")
"""torch's writer of archives says only that it failed."""
NO_ROOM = 2**16
"""Bytes: a disk with less was full when a write to it failed."""


@contextmanager
def room(folder: str | Path, what: str) -> Iterator[None]:
    """Raise StorageFull, naming the folder, where the body fails because a disk is full.

    Args:
        folder: where the body writes, unless the error itself names a file.
        what: it writes, for the message.
    """
    try:
        yield
    except StorageFull:
        raise
    except Exception as error:
        if not is_full(error, folder):
            raise
        place = _place(error) or folder
        raise StorageFull(
            f"{place} is full: {what} could not be written. Nothing that was on record is lost: "
            "make room there, then go on with --resume"
        ) from error


def is_full(error: BaseException, folder: str | Path) -> bool:
    """Whether a full disk is behind an error, or behind what caused it."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        if isinstance(cause, StorageFull) or (isinstance(cause, OSError) and cause.errno in FULL):
            return True
        text = str(cause)
        if type(cause).__name__ == "OutOfDiskError" or any(part in text for part in TEXTS):
            return True
        if any(part in text for part in TORCH) and free_bytes(folder) < NO_ROOM:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def free_bytes(folder: str | Path) -> int:
    """Room on the disk of a folder, or of the nearest one above that exists."""
    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _place(error: BaseException) -> Path | None:
    """The folder of the file that an OSError names."""
    name = getattr(error, "filename", None)
    return Path(name).parent if isinstance(name, str) else None
