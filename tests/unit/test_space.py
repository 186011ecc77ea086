"""Full disks, as every library that writes here reports them; real ones where tests run as root."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from cluster.errors import StorageFull
from cluster.files import replace_text
from cluster.ledger import write_table
from cluster.space import is_full, room


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_the_folder_that_is_full_is_named(code, tmp_path):
    with (
        pytest.raises(StorageFull, match=r"^/data/run is full: the file could not be .*--resume"),
        room(tmp_path, "the file"),
    ):
        raise OSError(code, os.strerror(code), "/data/run/file")


def test_other_errors_pass(tmp_path):
    with pytest.raises(PermissionError), room(tmp_path, "the file"):
        raise PermissionError(errno.EACCES, "denied", "/data")
    assert not is_full(RuntimeError("PytorchStreamWriter failed writing file"), tmp_path)


def test_a_full_disk_behind_another_error_is_found(tmp_path):
    error = RuntimeError("could not save")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StorageFull, match=f"^{tmp_path} is full"), room(tmp_path, "the file"):
        raise error


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB, with nothing on it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    # Lazily: an error that was caught may keep a file open.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


NUMBERS = torch.arange(2**20)  # 8 MiB
WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda folder: replace_text(folder / "x", "x" * 2**22),
    "parquet": lambda folder: write_table(pa.table({"x": NUMBERS.numpy()}), folder / "x"),
    "torch": lambda folder: torch.save(NUMBERS, folder / "x"),
    "safetensors": lambda folder: save_file({"x": NUMBERS}, folder / "x"),
}


@pytest.mark.parametrize("library", list(WRITERS))
def test_each_library_on_a_disk_that_is_really_full(library, full_disk):
    with pytest.raises(StorageFull, match=f"{full_disk} is full"), room(full_disk, "the file"):
        WRITERS[library](full_disk)
