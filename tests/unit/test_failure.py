"""The failure bundle and what `attune inspect` says, from errors that really were raised."""

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray
import yaml
from ray import cloudpickle
from ray.exceptions import RayTaskError
from typer.testing import CliRunner

from cluster.cli import app
from cluster.driver_record import driver_lives, left_behind, record_driver
from cluster.errors import batch_of, chain, root_cause, with_batch
from cluster.events import read_events, record
from cluster.failure import bundles, write_failure
from cluster.inspect_run import inspect_run, render
from cluster.joining import take_over
from cluster.ledger import FILTERED, USED, Ledger, LedgerRow
from cluster.phases import set_phase
from configs.errors import ConfigError

ROWS = [{"group_id": 7, "sample": 0, "prompt": "where?", "reply": "there"}]


def failed(cause: Exception | None = None) -> RuntimeError:
    """An error with a traceback, a cause and a batch."""
    try:
        try:
            raise cause or KeyError("price")
        except Exception as inner:
            raise with_batch(RuntimeError("reward judge failed 2 times"), ROWS) from inner
    except RuntimeError as error:
        return error


def row(group: int, step: int, status: str = USED) -> LedgerRow:
    return LedgerRow(
        group_id=group, status=status, step=step, attempts=1, engine="engine-0",
        oldest_version=0, newest_version=0, num_samples=4, num_tokens=9,
    )  # fmt: skip


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "logs" / "ray").mkdir(parents=True)
    (folder / "config.yaml").write_text(
        "algorithm: {name: rloo, num_steps: 9}\nmodel: {path: /m}\n"
        "feedback: {url: 'http://ann:secretword@host/', token: very-secret-value}\n"
    )
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "rew')
    (folder / "logs" / "engine-0.log").write_text("".join(f"line {i}\n" for i in range(1000)))
    (folder / "logs" / "ray" / "worker-1.err").write_text("Bearer abcdefgh12345678\n")
    set_phase(folder, "learner-0", "update")
    record(folder, "engine_lost", engine="engine-0")
    for name, is_whole in (("step=000001.attempt=1", True), ("step=000002.attempt=1", False)):
        saved = folder / "checkpoints" / name
        saved.mkdir(parents=True)
        (saved / ("manifest.json" if is_whole else "rank=0.json")).write_text("{}")
    ledger = Ledger(folder)
    ledger.commit(1, [row(0, 1), row(1, 1), row(5, 1, FILTERED)])
    ledger.commit(2, [row(2, 2), row(3, 2)])
    return folder


def test_a_bundle_holds_what_one_needs(run_dir):
    folder = write_failure(run_dir, failed())
    assert folder == run_dir / "failure"
    facts = json.loads((folder / "failure.json").read_text())
    assert facts["step"] == 2
    assert facts["error"] == "KeyError: 'price'"
    assert facts["phases"] == {"learner-0": "update"}
    assert facts["cause"]["name"] == "judge"
    text = (folder / "error.txt").read_text()
    assert "reward judge failed 2 times" in text
    assert "KeyError" in text
    assert "test_failure.py" in text, "the traceback"
    assert json.loads((folder / "batch.json").read_text()) == ROWS
    lines = (folder / "logs" / "engine-0.log").read_text().splitlines()
    assert lines == [f"line {i}" for i in range(800, 1000)]
    versions = json.loads((folder / "versions.json").read_text())["versions"]
    assert versions["ray"] == ray.__version__
    assert versions["python"].startswith("3.")
    assert json.loads((folder / "cluster.json").read_text())
    assert "engine_lost" in (folder / "events.jsonl").read_text()
    assert [event["kind"] for event in read_events(run_dir)] == ["engine_lost", "failure"]


def test_no_secret_is_in_a_bundle(run_dir, monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "swordfish-0815")
    monkeypatch.setenv("HF_TOKEN", "hf-or-whatever-it-is")
    monkeypatch.setenv("ATTUNE_PLAIN", "readable")
    folder = write_failure(run_dir, failed(ValueError("401 for swordfish-0815")))
    everything = "".join(p.read_text() for p in folder.rglob("*") if p.is_file())
    for secret in ("swordfish-0815", "secretword", "very-secret-value", "abcdefgh12345678",
                   "hf-or-whatever"):  # fmt: skip
        assert secret not in everything
    assert "readable" in everything
    assert yaml.safe_load((folder / "config.yaml").read_text())["algorithm"]["num_steps"] == 9


def test_a_second_failure_keeps_the_first(run_dir):
    for message in ("first", "second", "third"):
        write_failure(run_dir, RuntimeError(message))
    errors = [json.loads((f / "failure.json").read_text())["error"] for f in bundles(run_dir)]
    assert errors == ["RuntimeError: third", "RuntimeError: second", "RuntimeError: first"]
    assert [f.name for f in bundles(run_dir)] == ["failure", "failure-2", "failure-1"]


def test_one_error_has_one_bundle_however_often_it_is_passed_on(run_dir):
    error = failed()
    outer = RuntimeError("the stage failed")
    outer.__cause__ = error
    assert write_failure(run_dir, error) == write_failure(run_dir.parent, outer)
    assert len(bundles(run_dir)) == 1
    assert not bundles(run_dir.parent)


def test_a_folder_that_cannot_be_written_costs_the_bundle_and_not_the_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert write_failure(tmp_path / "file" / "run", RuntimeError("x")) is None


def test_a_batch_survives_being_pickled_and_ray_s_wrappers():
    error = pickle.loads(pickle.dumps(with_batch(RuntimeError("x"), ROWS)))
    wrapped = RayTaskError("score", "traceback", error).as_instanceof_cause()
    again = pickle.loads(cloudpickle.dumps(wrapped))  # as Ray passes it on
    outer = RuntimeError("ranks failed")
    outer.worker_failures = {0: RuntimeError("x"), 1: again}
    assert batch_of(outer) == ROWS
    assert root_cause(outer) == "RuntimeError: x"
    assert chain(outer)[0] is outer


def test_a_chain_that_bites_its_tail_ends():
    one, two = RuntimeError("one"), RuntimeError("two")
    one.__cause__, two.__cause__ = two, one
    assert chain(one) == [one, two]


def test_inspect_counts_groups_and_shows_phases_and_events(run_dir):
    found = inspect_run(run_dir)
    assert found["state"] == "stopped"
    assert found["step"] == 2
    assert found["ledger"]["groups"] == {"used": 4, "filtered": 1}
    assert found["ledger"]["used_twice"] == []
    assert found["checkpoints"] == ["step=000001.attempt=1"], "the other one was never finished"
    Ledger(run_dir).commit(3, [row(3, 3)])
    assert inspect_run(run_dir)["ledger"]["used_twice"] == [3]
    text = render(inspect_run(run_dir))
    for part in ("rloo", "learner-0: update", "engine_lost engine=engine-0", "step 2 of 9"):
        assert part in text
    assert "used twice   3" in text


def test_inspect_prints_the_bundle_and_the_command_refuses_what_is_no_run(run_dir, tmp_path):
    write_failure(run_dir, failed())
    result = CliRunner().invoke(app, ["inspect", str(run_dir), "--failure"])
    assert result.exit_code == 0, result.output
    for part in ("reward judge failed 2 times", "a judge gave no score", "1 samples", "line 999",
                 "learner-0: update"):  # fmt: skip
        assert part in result.output
    as_json = CliRunner().invoke(app, ["inspect", str(run_dir), "--json"])
    assert json.loads(as_json.output)["state"] == "failed"
    nowhere = CliRunner().invoke(app, ["inspect", str(tmp_path)])
    assert nowhere.exit_code == 2
    assert len(nowhere.output.strip().splitlines()) == 1


def test_inspect_says_when_there_was_no_failure(run_dir):
    result = CliRunner().invoke(app, ["inspect", str(run_dir), "--failure"])
    assert result.exit_code == 2
    assert "did not fail" in result.output


def sleeping() -> subprocess.Popen[bytes]:
    code = "import subprocess, sys, time; subprocess.Popen(['sleep', '300']); time.sleep(300)"
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while not psutil.Process(process.pid).children() and time.monotonic() < deadline:
        time.sleep(0.02)
    return process


def test_a_run_that_another_process_drives_is_refused_and_what_a_dead_one_left_is_ended(run_dir):
    code = (
        "import sys, time; from cluster.driver_record import record_driver\n"
        "record_driver(sys.argv[1], [int(sys.argv[2])]); print('ok', flush=True); time.sleep(300)"
    )
    ray_of_it = sleeping()
    parent = psutil.Process(ray_of_it.pid)
    grandchild = parent.children()[0]
    driver = subprocess.Popen(
        [sys.executable, "-c", code, str(run_dir), str(ray_of_it.pid)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        assert driver.stdout.readline() == b"ok\n"
        assert driver_lives(run_dir) == driver.pid
        assert inspect_run(run_dir)["state"] == "running"
        with pytest.raises(ConfigError, match=f"process {driver.pid}"):
            take_over(run_dir)
        assert ray_of_it.poll() is None, "nothing of a living driver is touched"
        driver.kill()
        driver.wait()
        assert [process.pid for process in left_behind(run_dir)] == [ray_of_it.pid]
        take_over(run_dir)
        _, alive = psutil.wait_procs([parent, grandchild], timeout=30)
        assert not alive, "it went, and what it had started with it"
    finally:
        for process in (driver, ray_of_it):
            process.kill()
            process.wait()


def test_a_process_id_that_was_given_out_again_is_not_the_driver(run_dir):
    record_driver(run_dir, [])
    path = run_dir / "driver.json"
    facts = json.loads(path.read_text())
    other = sleeping()
    try:
        began = int(Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[19])
        facts["driver"] |= {"pid": other.pid, "began": began - 99}
        path.write_text(json.dumps(facts))
        assert driver_lives(run_dir) is None
        facts["driver"]["began"] = began
        path.write_text(json.dumps(facts))
        assert driver_lives(run_dir) == other.pid
        facts["driver"]["boot"] = "another start of the machine"
        path.write_text(json.dumps(facts))
        assert driver_lives(run_dir) is None
    finally:
        for process in [*psutil.Process(other.pid).children(), other]:
            process.kill()
        other.wait()
