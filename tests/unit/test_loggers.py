"""Figures of a run in TensorBoard, in a second file, in W&B and in MLflow."""

import json
import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster.events import read_events
from cluster.loggers.build import open_loggers
from cluster.loggers.feed import Lane, LoggerFeed
from configs.load import load_config, to_yaml
from tests.unit.test_tail import rewind

LOGGERS = "cluster.metrics.loggers"


def config_of(run_dir, *overrides):
    settings = ["model.path=m", "data.train=d", "algorithm.name=sft", "algorithm.num_steps=10"]
    run_dir.mkdir(exist_ok=True)
    return load_config(None, [*settings, f"cluster.run_dir={run_dir}", *overrides])


def write(run_dir, *steps, value=None):
    with (run_dir / "metrics.jsonl").open("a") as file:
        for step in steps:
            row = {"step": step, "policy_version": step, "time_s": 2.0 * step}
            row["loss/nll"] = 1.0 * step if value is None else value
            file.write(json.dumps(row) + "\n")


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def lane_of(config, clock=time.monotonic):
    ((name, made),) = open_loggers(config).items()
    return Lane(config, name, made, clock)


def events_of(run_dir):
    return [event["kind"] for event in read_events(run_dir)]


# TensorBoard


def records(file):
    """The events of one file: length, checksum, bytes, checksum."""
    from tensorboardX.proto import event_pb2

    content = file.read_bytes()
    while content:
        (size,) = struct.unpack("Q", content[:8])
        yield event_pb2.Event.FromString(content[12 : 12 + size])
        content = content[12 + size + 4 :]


def shown_by_tensorboard(run_dir, name):
    """(step, value) of all points, as its reader keeps them: a START forgets later steps."""
    shown = []
    for file in sorted((run_dir / "tensorboard").iterdir()):
        for event in records(file):
            if event.HasField("session_log") and event.session_log.status == 1:
                shown = [point for point in shown if point[0] < event.step]
            for value in event.summary.value:
                if value.tag == name:
                    shown.append((event.step, value.simple_value))
    return shown


def test_tensorboard_has_each_scalar_under_its_name_with_its_step_and_time(tmp_path):
    config = config_of(tmp_path, f"{LOGGERS}.tensorboard={{}}")
    write(tmp_path, 1, 2)
    os.utime(tmp_path / "metrics.jsonl", (5000.0, 5000.0))
    lane_of(config).step()
    (file,) = (tmp_path / "tensorboard").iterdir()
    head, text, *rows = records(file)
    assert head.file_version == "brain.Event:2"
    assert "algorithm:" in text.summary.value[0].tensor.string_val[0].decode()
    assert [row.step for row in rows] == [1, 2]
    assert [row.wall_time for row in rows] == [4998.0, 5000.0]  # step 1 ended 2 s before step 2
    names = {value.tag: value.simple_value for value in rows[1].summary.value}
    assert names == {"policy_version": 2, "time_s": 4, "loss/nll": 2}


def test_a_row_that_says_when_it_was_written_is_believed(tmp_path):
    config = config_of(tmp_path, f"{LOGGERS}.tensorboard={{}}")
    row = {"step": 1, "unix_time": 1234.5, "time_s": 1.0, "loss/nll": 3.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    lane_of(config).step()
    (file,) = (tmp_path / "tensorboard").iterdir()
    last = list(records(file))[-1]
    assert last.wall_time == 1234.5
    assert {value.tag for value in last.summary.value} == {"time_s", "loss/nll"}


def test_no_step_is_shown_twice_when_a_run_goes_on_or_its_feeder_does(tmp_path):
    config = config_of(tmp_path, f"{LOGGERS}.tensorboard={{}}")
    write(tmp_path, *range(1, 11))
    lane_of(config).step()  # its process is killed
    rewind(tmp_path, 6)
    write(tmp_path, *range(7, 14), value=99.0)
    second = lane_of(config)
    second.step()
    rewind(tmp_path, 12)
    write(tmp_path, 13, value=7.0)
    second.step()
    expected = [(step, step) for step in range(1, 7)]
    expected += [(step, 99.0) for step in range(7, 13)] + [(13, 7.0)]
    assert shown_by_tensorboard(tmp_path, "loss/nll") == expected


def test_the_program_tensorboard_agrees(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    test_no_step_is_shown_twice_when_a_run_goes_on_or_its_feeder_does(tmp_path)
    accumulator = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    points = [(event.step, event.value) for event in accumulator.Scalars("loss/nll")]
    assert points == shown_by_tensorboard(tmp_path, "loss/nll")
    assert "config/text_summary" in accumulator.Tags()["tensors"]


# The second file


def test_the_second_file_has_the_same_lines_also_after_the_run_went_back(tmp_path):
    copy = tmp_path / "shared" / "rows.jsonl"
    run = tmp_path / "run"
    config = config_of(run, f"{LOGGERS}.jsonl.path={copy}")
    write(run, *range(1, 31))
    first = lane_of(config)
    first.step()
    assert copy.read_text() == (run / "metrics.jsonl").read_text()
    rewind(run, 20)
    write(run, *range(21, 50), value=0.25)
    first.step()
    assert copy.read_text() == (run / "metrics.jsonl").read_text()
    rewind(run, 40)
    lane_of(config).step()  # of the process after a restart; nothing new yet
    write(run, *range(41, 44), value=0.125)
    lane_of(config).step()
    assert copy.read_text() == (run / "metrics.jsonl").read_text()


def test_a_line_torn_by_the_feeders_death_is_written_again(tmp_path):
    copy, run = tmp_path / "rows.jsonl", tmp_path / "run"
    config = config_of(run, f"{LOGGERS}.jsonl.path={copy}")
    write(run, 1, 2)
    lane_of(config).step()
    with copy.open("a") as file:
        file.write('{"step": 3, "tim')  # died here: step 3 is not noted
    write(run, 3, 4)
    lane_of(config).step()
    assert copy.read_text() == (run / "metrics.jsonl").read_text()


def test_rows_of_something_else_are_never_touched(tmp_path):
    copy, run = tmp_path / "rows.jsonl", tmp_path / "run"
    copy.write_text('{"step": 1, "other": 1}\n')
    config = config_of(run, f"{LOGGERS}.jsonl.path={copy}")
    write(run, 1)
    lane_of(config).step()
    assert copy.read_text() == '{"step": 1, "other": 1}\n'
    assert "give another path" in read_events(run)[0]["error"]


def test_a_logger_with_other_settings_gets_all_rows(tmp_path):
    run = tmp_path / "run"
    config = config_of(run, f"{LOGGERS}.jsonl.path={tmp_path / 'one'}")
    write(run, 1, 2)
    lane_of(config).step()
    lane_of(config_of(run, f"{LOGGERS}.jsonl.path={tmp_path / 'two'}")).step()
    assert (tmp_path / "two").read_text() == (run / "metrics.jsonl").read_text()


# Failures


def test_a_failure_is_told_once_tried_again_ever_more_seldom_and_loses_nothing(tmp_path):
    run, clock = tmp_path / "run", Clock()
    folder = tmp_path / "shared"
    folder.write_text("in the way")
    config = config_of(run, f"{LOGGERS}.jsonl.path={folder / 'rows.jsonl'}")
    write(run, 1)
    lane = lane_of(config, clock)
    tries = []
    begin = lane._logger.begin
    lane._logger.begin = lambda *given: (tries.append(clock.now), begin(*given))[1]
    for second in range(0, 101, 2):
        clock.now = float(second)
        lane.step()
    assert tries == [0, 6, 16, 36, 76]  # 5, 10, 20, 40 s later, looked at every 2 s
    (event,) = read_events(run)
    assert (event["kind"], event["logger"]) == ("logger_failed", "jsonl")
    folder.unlink()
    write(run, 2)
    clock.now = 1000.0
    lane.step()
    assert (folder / "rows.jsonl").read_text() == (run / "metrics.jsonl").read_text()
    assert events_of(run) == ["logger_failed", "logger_recovered"]


def test_a_logger_that_fails_or_hangs_does_not_hurt_the_others(tmp_path):
    """A pipe that nobody reads holds up whoever opens it, as a dead network does."""
    run = tmp_path / "run"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    config = config_of(run, f"{LOGGERS}.jsonl.path={pipe}", f"{LOGGERS}.tensorboard={{}}")
    write(run, 1, 2)
    feed = LoggerFeed(config)
    started = time.monotonic()
    feed.step()
    assert time.monotonic() - started < 0.1
    until = time.monotonic() + 10
    while not (run / "tensorboard").exists() or len(shown_by_tensorboard(run, "loss/nll")) < 2:
        assert time.monotonic() < until
        time.sleep(0.02)
    write(run, 3)
    feed.close(finished=True, within_s=0.5)
    assert time.monotonic() - started < 10
    assert [step for step, _ in shown_by_tensorboard(run, "loss/nll")] == [1, 2, 3]
    (event,) = read_events(run)
    assert event["logger"] == "jsonl"
    assert "did not end within 0.5 s" in event["error"]
    with pipe.open() as reader:  # lets the thread go
        reader.read()


def test_a_feed_without_loggers_starts_no_threads(tmp_path):
    before = threading.active_count()
    feed = LoggerFeed(config_of(tmp_path))
    feed.step()
    assert threading.active_count() == before
    feed.close(finished=True)


# Weights & Biases, without a network


def entries(file):
    """The records of a .wandb file: LevelDB's log format behind a header of 7 bytes."""
    content, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 2**15 - at % 2**15 < 7:  # no room for a head: filled up
            at += 2**15 - at % 2**15
            continue
        size, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # all of it, or its last part
            yield whole
            whole = b""


def offline_runs(run_dir):
    """(id, exit code, [(step, loss)]) of every offline run, oldest first."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for file in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        rows, run_id, code = [], "", None
        for entry in map(Record.FromString, entries(file)):
            if entry.HasField("run"):
                run_id = entry.run.run_id
            if entry.HasField("exit"):
                code = entry.exit.exit_code
            if entry.HasField("history"):
                items = {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json)
                    for item in entry.history.item
                }
                rows.append((entry.history.step.num, items["loss/nll"], items["_timestamp"]))
        found.append((run_id, code, rows))
    return found


@pytest.fixture
def wandb_home(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2 + "01234567")


def everything_in(folder):
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_wandb_offline_goes_on_with_the_same_run_and_repeats_no_step(tmp_path, wandb_home):
    run = tmp_path / "run"
    config = config_of(run, f"{LOGGERS}.wandb.mode=offline")
    write(run, *range(1, 11))
    first = LoggerFeed(config)
    first.step()
    first.close(finished=False)
    time.sleep(1.1)  # it names its folders by the second
    rewind(run, 8)
    write(run, *range(9, 14), value=0.5)
    second = LoggerFeed(config)
    second.close(finished=True)
    assert events_of(run) == []
    before, after = offline_runs(run)
    assert before[0] == after[0] != ""
    assert (before[1], after[1]) == (1, 0)
    # What was run again keeps its first figures.
    assert [row[:2] for row in before[2]] == [(step, float(step)) for step in range(1, 11)]
    assert [row[:2] for row in after[2]] == [(step, 0.5) for step in range(11, 14)]
    assert before[2][-1][2] - before[2][0][2] == pytest.approx(18.0)  # unix time: 2 s a step
    assert os.environ["WANDB_API_KEY"].encode() not in everything_in(run)


def test_wandb_without_its_server_fails_alone_and_can_be_tried_again(
    tmp_path, wandb_home, monkeypatch, caplog
):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("cluster.loggers.wandb.START_S", 1.0)
    run, clock = tmp_path / "run", Clock()
    lane = lane_of(config_of(run, f"{LOGGERS}.wandb={{}}"), clock)
    write(run, 1)
    for second in (0.0, 100.0):
        clock.now = second
        with caplog.at_level("INFO", "cluster.loggers.feed"):
            lane.step()
    assert events_of(run) == ["logger_failed"]
    told = [entry for entry in caplog.records if entry.name == "cluster.loggers.feed"]
    assert len(told) == 2
    assert not any("in use" in str(entry.exc_info[1]) for entry in told)
    assert os.environ["WANDB_API_KEY"].encode() not in everything_in(run)


# MLflow, in a database


def test_mlflow_goes_on_with_the_same_run_and_repeats_no_step(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    run = tmp_path / "run"
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    config = config_of(run, f"{LOGGERS}.mlflow.uri={uri}")
    write(run, *range(1, 11))
    lane_of(config).step()  # killed
    memory = json.loads((run / "loggers" / "mlflow.json").read_text())
    memory[2:] = [5, []]  # killed before it noted steps 6 to 10
    (run / "loggers" / "mlflow.json").write_text(json.dumps(memory))
    rewind(run, 8)
    write(run, *range(9, 14), value=0.5)
    lane_of(config).close(finished=True)
    assert events_of(run) == []
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("attune")
    (stored,) = client.search_runs([experiment.experiment_id])
    assert stored.info.status == "FINISHED"
    assert stored.info.run_name == "run"
    assert stored.data.params["algorithm.num_steps"] == "10"
    history = client.get_metric_history(stored.info.run_id, "loss/nll")
    points = sorted((metric.step, metric.value) for metric in history)
    expected = [(step, float(step)) for step in range(1, 11)]
    assert points == expected + [(step, 0.5) for step in range(11, 14)]
    assert abs(history[-1].timestamp / 1000 - Path(run / "metrics.jsonl").stat().st_mtime) < 1


def test_a_feed_loads_no_library_of_a_logger_that_is_not_asked_for(tmp_path):
    config = config_of(tmp_path, f"{LOGGERS}.jsonl.path={tmp_path / 'copy.jsonl'}")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    write(tmp_path, 1)
    code = (
        "import sys\n"
        "from cluster.loggers.feed import LoggerFeed\n"
        "from configs.load import load_config\n"
        f"LoggerFeed(load_config({str(tmp_path / 'config.yaml')!r})).close(finished=True)\n"
        "heavy = {'torch', 'ray', 'tensorboardX', 'wandb', 'mlflow', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert ran.stdout.strip() == "[]", ran.stderr
    assert json.loads((tmp_path / "copy.jsonl").read_text())["loss/nll"] == 1.0
