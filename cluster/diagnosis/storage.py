"""Where runs and Ray write: folders, disks, shared memory."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from cluster.diagnosis.findings import GIB, Finding
from configs.machine import available_memory
from configs.schema import RunConfig

SHM_NEEDED = 2**28
"""Bytes of /dev/shm below which even a small run's batches do not fit Ray's object store."""
DISK_NEEDED = 2 * GIB
LONGEST_SOCKET_PATH = 107
SESSION_PATH = len("/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
DISK_FULL = 0.95
"""Ray stops spilling objects to a disk that is fuller than this."""


def judge_folder(name: str, path: Path, refusal: str) -> Finding:
    """Whether files can be written; `refusal` is the system's reason, empty where they can."""
    if refusal:
        remedy = "go to another, or give one as cluster.run_dir"
        return Finding(
            level="wrong", what=f"{name} {path} is not writable ({refusal})", remedy=remedy
        )
    return Finding(level="ok", what=f"{name} is writable")


def judge_disk(name: str, free: int, total: int, needed: int = DISK_NEEDED) -> Finding:
    """Bytes free where runs or Ray write, of which `needed` will be used."""
    what = f"{free / GIB:.1f} GiB disk free for {name}"
    if free < needed:
        remedy = f"free at least {needed / GIB:.3g} GiB"
        return Finding(level="wrong", what=what, remedy=remedy)
    if free < (1 - DISK_FULL) * total:
        remedy = f"the disk is over {DISK_FULL:.0%} full, where Ray stops spilling; free some"
        return Finding(level="note", what=what, remedy=remedy)
    return Finding(level="ok", what=what)


def judge_socket_path(folder: Path) -> list[Finding]:
    """A socket's path holds 107 bytes, and Ray's lie deep in its folder."""
    if len(os.fsencode(folder)) <= LONGEST_SOCKET_PATH - SESSION_PATH:
        return []
    remedy = "Ray cannot open sockets there; set RAY_TMPDIR to a short path such as /tmp"
    return [Finding(level="wrong", what=f"Ray's folder {folder} has a long name", remedy=remedy)]


def judge_shm(free: int | None, memory: float) -> Finding:
    """Bytes free in /dev/shm beside bytes of memory; `free` is None where there is no such folder.

    Ray wants 30 % of memory for objects and goes to disk where /dev/shm is smaller.
    """
    if free is None:
        return Finding(level="ok", what="no /dev/shm on this system")
    what = f"{free / GIB:.1f} GiB free in /dev/shm"
    container = "in a container give --shm-size=4g or more"
    if free < SHM_NEEDED:
        remedy = f"Ray keeps objects there; {container}"
        return Finding(level="wrong", what=what, remedy=remedy)
    if free < 0.3 * memory:
        remedy = f"Ray keeps objects on disk where it is smaller than 30 % of memory; {container}"
        return Finding(level="note", what=what, remedy=remedy)
    return Finding(level="ok", what=what)


def ray_folder() -> Path:
    """Where Ray puts its sessions: in RAY_TMPDIR, on Linux alone in TMPDIR, or in /tmp."""
    linux = sys.platform.startswith("linux")
    temp = os.environ.get("RAY_TMPDIR") or (os.environ.get("TMPDIR") if linux else None) or "/tmp"
    return Path(temp) / "ray"


def nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder


def disk_space(folder: Path) -> tuple[int, int]:
    """Bytes free and in all; those of the nearest folder that exists."""
    usage = shutil.disk_usage(nearest(folder))
    return usage.free, usage.total


def shm_space() -> int | None:
    folder = Path("/dev/shm")
    return shutil.disk_usage(folder).free if folder.is_dir() else None


def write_refusal(folder: Path) -> str:
    """The reason why no file can be written there; empty where one can."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or type(error).__name__


def folder_needs(config: RunConfig, parameters: int | None) -> int:
    """Bytes that a run leaves in its folder: checkpoints, models, and little else.

    A checkpoint holds float32 masters and Adam's two moments, 12 bytes a parameter, and the weights
    of the forward pass; one more than `keep` lies there while it is written. The policy is exported
    once, and once more where references are made of it.
    """
    if parameters is None:
        return DISK_NEEDED
    width = 2 if config.model.dtype == "bfloat16" else 4
    models = 2 if config.algorithm.advantage == "gae" else 1
    exports = 1 if config.model.reference_update in ("frozen", "none") else 3
    checkpoints = (config.cluster.checkpoint.keep + 1) * models * (12 + width)
    return DISK_NEEDED + parameters * (checkpoints + exports * width)


def examine_storage(config: RunConfig | None, parameters: int | None) -> list[Finding]:
    """Every verdict about where a run and Ray write."""
    temp, memory = ray_folder(), available_memory()
    folder = Path.cwd() if config is None else Path(config.cluster.run_dir).absolute()
    name = "this folder" if config is None else "cluster.run_dir"
    needed = DISK_NEEDED if config is None else folder_needs(config, parameters)
    return [
        judge_folder(name, folder, write_refusal(nearest(folder))),
        judge_disk(name, *disk_space(folder), needed),
        judge_folder("Ray's folder", temp, write_refusal(nearest(temp))),
        judge_disk(f"Ray's folder {temp}", *disk_space(temp)),
        *judge_socket_path(temp),
        judge_disk("temporary files", *disk_space(Path(tempfile.gettempdir()))),
        judge_shm(shm_space(), memory),
    ]
