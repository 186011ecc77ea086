"""Traces of learner steps."""

import gzip
import json

import pytest
import torch
from torch.profiler import record_function

from cluster.events import read_events
from cluster.profiling import profiled
from configs.errors import ConfigError
from configs.load import load_config


def config_of(run_dir, *overrides, num_steps=10):
    settings = ["model.path=m", "data.train=d", "algorithm.name=sft"]
    settings += [f"algorithm.num_steps={num_steps}", f"cluster.run_dir={run_dir}"]
    return load_config(None, [*settings, *overrides])


def learn(config, steps, rank=0):
    """Multiply matrices of as many rows as the step's number in each phase."""
    taken = []
    for step in profiled(config, rank, steps):
        taken.append(step)
        for name in ("update", "sync", "checkpoint"):
            with record_function(name):
                torch.ones(step, 4) @ torch.ones(4, 4)
    return taken


def trace(run_dir, rank=0):
    with gzip.open(run_dir / "profile" / f"rank={rank}.json.gz", "rt") as file:
        return json.load(file)["traceEvents"]


def count(events, name):
    return sum(event.get("name") == name and event.get("ph") == "X" for event in events)


def test_a_trace_has_the_phases_of_the_steps_that_were_asked_for(tmp_path):
    config = config_of(tmp_path, "cluster.learner.profile.first_step=3")
    assert learn(config, range(1, 11), rank=1) == list(range(1, 11))
    events = trace(tmp_path, rank=1)
    assert [count(events, name) for name in ("update", "sync", "checkpoint")] == [2, 2, 2]
    assert count(events, "aten::mm") == 6
    (told,) = read_events(tmp_path)
    assert (told["kind"], told["rank"]) == ("profile_written", 1)
    assert (told["first_step"], told["last_step"]) == (3, 4)
    assert told["bytes"] == (tmp_path / "profile" / "rank=1.json.gz").stat().st_size
    assert [file.name for file in (tmp_path / "profile").iterdir()] == ["rank=1.json.gz"]


@pytest.mark.parametrize(
    ("steps", "num_traced"),
    [(range(1, 5), 2), (range(3, 11), 2), (range(4, 11), 1), (range(4, 5), 1)],
)
def test_a_learner_that_goes_on_traces_what_is_left(tmp_path, steps, num_traced):
    config = config_of(tmp_path, "cluster.learner.profile={}")
    assert learn(config, steps) == list(steps)
    assert count(trace(tmp_path), "update") == num_traced


@pytest.mark.parametrize("overrides", [(), ("cluster.learner.profile={}",)])
def test_without_steps_to_trace_nothing_is_written(tmp_path, overrides):
    config = config_of(tmp_path, *overrides)
    assert learn(config, range(5, 11)) == list(range(5, 11))
    assert list(tmp_path.iterdir()) == []


def test_a_learner_that_fails_is_not_held_up_and_can_be_traced_again(tmp_path):
    config = config_of(tmp_path, "cluster.learner.profile={}")

    def fail():
        for step in profiled(config, 0, range(1, 11)):
            if step == 4:
                raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert not (tmp_path / "profile").exists()
    learn(config, range(1, 11))
    assert count(trace(tmp_path), "update") == 2


def test_a_trace_that_cannot_be_written_is_told_of_and_the_run_goes_on(tmp_path):
    (tmp_path / "profile").write_text("in the way")
    config = config_of(tmp_path, "cluster.learner.profile={}")
    assert learn(config, range(1, 11)) == list(range(1, 11))
    (told,) = read_events(tmp_path)
    assert told["kind"] == "profile_failed"
    assert "profile" in told["reason"]


def test_steps_that_are_not_taken_or_too_many_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"goes beyond algorithm\.num_steps=10"):
        config_of(tmp_path, "cluster.learner.profile.first_step=10")
    config_of(tmp_path, "cluster.learner.profile.first_step=9")
    with pytest.raises(ConfigError, match="less than or equal to 20"):
        config_of(tmp_path, "cluster.learner.profile.num_steps=21", num_steps=100)
