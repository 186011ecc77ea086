"""Torn checkpoints and full disks, in whole runs: named, nothing lost, and gone on from."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.schema import RunConfig
from tests.integration.conftest import world_model, world_prompts
from tests.integration.loop import tiny_run
from tests.integration.processes import wait_for_step
from tests.integration.test_learner_restarts import (
    begin_sft,
    events,
    sft_run,
    steps_of,
    world_pairs,
)
from tests.integration.test_run import assert_each_group_once, finish, start

__all__ = ["world_model", "world_pairs", "world_prompts"]
pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(900)]

ROOMY = "size=2g"


def ended(process: subprocess.Popen[str], code: int) -> str:
    """What a run that ends with that exit code said."""
    output, _ = process.communicate(timeout=400)
    assert process.returncode == code, output
    return output


def newest(config: RunConfig) -> Path:
    """The folder of the newest checkpoint."""
    return sorted(Path(config.cluster.run_dir, "checkpoints").glob("step=*"))[-1]


def tear(checkpoint: Path, how: str) -> None:
    """What a crash, a bad disk or a person can do to a checkpoint."""
    part = max(checkpoint.rglob("*.pt"), key=lambda path: path.stat().st_size)
    match how:
        case "short":
            os.truncate(part, part.stat().st_size // 2)
        case "missing":
            part.unlink()
        case "manifest":
            os.truncate(checkpoint / "manifest.json", 100)


@pytest.mark.parametrize("how", ["short", "missing", "manifest"])
def test_of_a_torn_checkpoint_the_one_before_is_used(
    how: str, world_model: Path, world_pairs: Path, tmp_path: Path
) -> None:
    settings = ("algorithm.num_steps=6", "cluster.checkpoint.interval=2")
    config = sft_run(world_model, world_pairs, tmp_path / "run", *settings)
    ended(begin_sft(config), 0)
    losses = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    tear(newest(config), how)

    ended(begin_sft(config, "--resume"), 0)
    (torn,) = events(config, "checkpoint_torn")
    assert torn["step"] == 6
    assert [event["version"] for event in events(config, "learner_started")] == [0, 4]
    assert steps_of(config) == list(range(1, 7))
    again = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    one, two = (json.loads(lines[-1])["loss/nll"] for lines in (losses, again))
    assert two == pytest.approx(one, rel=1e-4), "step 6 was learned from another state"


def test_where_all_checkpoints_are_torn_the_run_says_so_and_does_not_begin_anew(
    world_model: Path, world_pairs: Path, tmp_path: Path
) -> None:
    settings = ("algorithm.num_steps=4", "cluster.checkpoint.interval=2")
    config = sft_run(world_model, world_pairs, tmp_path / "run", *settings)
    ended(begin_sft(config), 0)
    for folder in Path(config.cluster.run_dir, "checkpoints").glob("step=*"):
        tear(folder, "short")
    output = ended(begin_sft(config, "--resume"), 1)
    assert "CheckpointsLost: no checkpoint in" in output
    assert "Traceback" not in output
    assert len(events(config, "learner_failure")) == 1, "it was tried again in vain"
    assert steps_of(config) == list(range(1, 5)), "the metrics are as they were"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", ROOMY, "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def resize(disk: Path, size: str) -> None:
    """Make the disk larger or smaller, down to what is on it."""
    subprocess.run(["mount", "-o", f"remount,{size}", str(disk)], check=True)


def used(disk: Path) -> int:
    stats = os.statvfs(disk)
    return (stats.f_blocks - stats.f_bfree) * stats.f_frsize


def test_a_store_that_is_full_ends_the_run_by_name_and_it_goes_on_once_there_is_room(
    world_model: Path, world_pairs: Path, tmp_path: Path, disk: Path
) -> None:
    settings = ("algorithm.num_steps=200", "cluster.checkpoint.interval=20")
    elsewhere = f"cluster.checkpoint.storage={disk}/checkpoints"
    config = sft_run(world_model, world_pairs, tmp_path / "run", *settings, elsewhere)
    process = begin_sft(config)
    deadline = time.monotonic() + 240
    while not events(config, "checkpoint_saved"):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    resize(disk, f"size={used(disk) * 5 // 4}")  # no room for another one
    output = ended(process, 1)
    assert "StorageFull" in output
    assert str(disk) in output
    assert "Traceback" not in output
    assert len(events(config, "learner_started")) == 1, "it was tried again in vain"

    resize(disk, ROOMY)
    ended(begin_sft(config, "--resume"), 0)
    assert steps_of(config) == list(range(1, 201))
    assert events(config, "learner_started")[-1]["version"] >= 20, "what was saved was used"


def test_a_run_folder_that_is_full_ends_the_run_by_name_and_no_group_is_lost(
    world_model: Path, world_prompts: Path, disk: Path, tmp_path: Path
) -> None:
    config = tiny_run(
        world_model, world_prompts, disk / "run", "algorithm.num_steps=30",
        "cluster.checkpoint.interval=4", f"cluster.checkpoint.scratch={tmp_path}",
    )  # fmt: skip
    process = start(config)
    wait_for_step(disk / "run", 6, process)
    resize(disk, f"size={used(disk) + 2**18}")  # room for a few steps, not for a checkpoint
    output = ended(process, 1)
    assert "StorageFull" in output
    assert str(disk) in output
    assert "Traceback" not in output

    resize(disk, ROOMY)
    result = finish(config, "--resume")
    assert result.returncode == 0, result.stderr
    assert steps_of(config) == list(range(1, 31))
    assert_each_group_once(config)
