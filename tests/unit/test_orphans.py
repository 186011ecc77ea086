"""What an engine leaves behind ends by itself: real processes, killed from above."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.integration.processes import gone

LEAF = """
import time
from actors.orphans import end_with_ancestors
end_with_ancestors(0.1)
print("ready", flush=True)
time.sleep(120)
"""
ABOVE = """
import subprocess, sys
subprocess.run([sys.executable, *sys.argv[1:]])
"""


def family(tmp_path: Path, middle: str) -> list[psutil.Process]:
    """An actor, what is between, and a leaf that watches."""
    leaf = tmp_path / "leaf.py"
    leaf.write_text(LEAF)
    above = tmp_path / middle
    above.write_text(ABOVE)
    top = tmp_path / "actor.py"
    top.write_text(ABOVE)
    process = subprocess.Popen(
        [sys.executable, str(top), str(above), str(leaf)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    actor = psutil.Process(process.pid)
    return [actor, *actor.children(recursive=True)]


def end(processes: list[psutil.Process]) -> None:
    for process in processes:
        if process.is_running():
            process.kill()


def test_a_process_ends_with_its_parent(tmp_path):
    processes = family(tmp_path, "parent.py")
    try:
        processes[1].kill()
        assert gone(processes[2:], within_s=10)
    finally:
        end(processes)


@pytest.mark.parametrize(("middle", "is_ended"), [("EngineCore.py", True), ("shell.py", False)])
def test_an_engine_core_ends_with_its_actor_and_no_other_process_does(
    middle: str, is_ended: bool, tmp_path: Path
) -> None:
    processes = family(tmp_path, middle)
    try:
        processes[0].kill()
        if is_ended:
            assert gone(processes, within_s=10)
        else:
            time.sleep(1.0)
            assert all(process.is_running() for process in processes[1:])
    finally:
        end(processes)
