"""Deadlines name the peer; hung work ends its process; events and phases are read as written."""

import subprocess
import sys

from cluster.deadlines import HUNG, last_lines, late
from cluster.events import FILE, read_events, record
from cluster.phases import phase_of, phases, set_phase

HANG = """
import time
from cluster.deadlines import watched
with watched(0.2, "summing gradients"):
    time.sleep(60)
"""


def test_work_that_hangs_ends_its_process_and_says_what_hung():
    done = subprocess.run([sys.executable, "-c", HANG], capture_output=True, text=True, timeout=60)
    assert done.returncode == HUNG
    assert "summing gradients did not end within 0 s" in done.stderr
    assert "time.sleep" in done.stderr or "<module>" in done.stderr


def test_why_a_process_ended_itself_is_told_and_cannot_hold_it_up(tmp_path):
    told = HANG.replace('"summing gradients"', '"summing gradients", tell')
    tell = """
import pathlib, time, cluster.deadlines
cluster.deadlines.LAST_WORDS_S = 0.5
def tell():
    pathlib.Path("told").touch()
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", tell + told], cwd=tmp_path, timeout=30)
    assert done.returncode == HUNG
    assert (tmp_path / "told").exists()


def test_work_that_ends_in_time_leaves_its_process_alone():
    code = HANG.replace("time.sleep(60)", "pass") + "time.sleep(0.5)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_late_peer_is_named_with_its_last_lines(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "engine-1.log").write_text("one\ntwo\n\nthree\nfour\n")
    assert last_lines(tmp_path, "engine-1") == ["two", "three", "four"]
    message = late("engine-1", "sync", 8, tmp_path, "cluster.sync.deadline_s")
    assert "engine-1 did not answer within 8 s (phase: sync)" in message
    assert "cluster.sync.deadline_s" in message
    assert message.endswith("two | three | four")


def test_events_are_read_in_order_without_a_torn_line(tmp_path):
    record(tmp_path, "engine_lost", engine="engine-0")
    record(tmp_path, "engine_joined", engine="engine-0")
    with (tmp_path / FILE).open("a") as file:
        file.write('{"time": 1.0, "ki')
    assert [event["kind"] for event in read_events(tmp_path)] == ["engine_lost", "engine_joined"]


def test_events_of_a_folder_that_is_gone_are_lost_quietly(tmp_path):
    record(tmp_path / "nowhere", "engine_lost")
    assert read_events(tmp_path / "nowhere") == []


def test_phases_by_role(tmp_path):
    assert phase_of(tmp_path, "learner-0") == ""
    set_phase(tmp_path, "learner-0", "update")
    set_phase(tmp_path, "collector", "sample")
    set_phase(tmp_path, "learner-0", "sync")
    assert phases(tmp_path) == {"collector": "sample", "learner-0": "sync"}
