"""What this machine has: memory that a run may take, cores, and a compiler."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUP_ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def available_memory() -> int:
    """Bytes that new processes can take without swapping, under every limit set on this one."""
    free = psutil.virtual_memory().available
    return min([free, *cgroup_headroom(CGROUP_ROOT, MEMBERSHIP)])


def available_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpus() -> list[tuple[str, float]]:
    """Name and GiB of every GPU that the driver shows; none where there is no driver."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=5, check=False)
    except subprocess.TimeoutExpired:
        return []
    if answer.returncode != 0:
        return []
    return parse_gpus(answer.stdout)


def smallest_gpu() -> float | None:
    """GiB of the smallest GPU here; None without one."""
    return min((gib for _, gib in gpus()), default=None)


def parse_gpus(text: str) -> list[tuple[str, float]]:
    """Name and GiB from lines such as `NVIDIA H200, 143771`, in MiB."""
    rows = [line.rpartition(",") for line in text.strip().splitlines()]
    return [(name.strip(), int(size) / 1024) for name, _, size in rows if size.strip().isdigit()]


COMPILER_REMEDY = (
    "vLLM compiles its sampling kernels for CPUs; install one (`apt install g++`) or name it in CXX"
)


def cpp_compiler() -> str | None:
    """Path of the C++ compiler that torch would take: CXX, else g++."""
    return shutil.which(os.environ.get("CXX") or "g++")


def cgroup_headroom(root: Path, membership: Path) -> Iterator[int]:
    """Bytes left under the memory limit of each control group that holds this process.

    A container may see its own group as the root, or the whole path, or both; a group without a
    limit gives nothing. File cache counts as used but is given back on demand, hence as free.
    """
    for folder in _folders(root, membership):
        for limit_name, usage_name, cache_name in (
            ("memory.max", "memory.current", "inactive_file"),  # version 2
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # version 1
        ):
            limit, used = _number(folder / limit_name), _number(folder / usage_name)
            if limit is not None and used is not None:
                yield max(0, limit - used + _cache(folder / "memory.stat", cache_name))


def _folders(root: Path, membership: Path) -> Iterator[Path]:
    """Folders of this process's groups and of the groups around them, innermost first."""
    lines = membership.read_text().splitlines() if membership.is_file() else []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        inner = base / name.lstrip("/")
        yield inner
        yield from (parent for parent in inner.parents if parent.is_relative_to(base))


def _number(path: Path) -> int | None:
    """The file's number; None where there is no file, or the word `max`."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _cache(path: Path, name: str) -> int:
    """Bytes of file cache that the group can give back."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [name]), 0)
