"""Loggers that could not log are refused before a run begins."""

import json
from importlib.util import find_spec

import pytest

from cluster.loggers.build import target_of
from cluster.loggers.checks import check_loggers
from configs.errors import ConfigError
from configs.load import load_config
from configs.paths import absolute_paths

LOGGERS = "cluster.metrics.loggers"


def config_of(run_dir, *overrides):
    settings = ["model.path=m", "data.train=d", "algorithm.name=sft", "algorithm.num_steps=10"]
    given = [f"{LOGGERS}.{override}" for override in overrides]
    return load_config(None, [*settings, f"cluster.run_dir={run_dir}", *given])


def refusal(run_dir, *overrides):
    with pytest.raises(ConfigError) as caught:
        check_loggers(config_of(run_dir, *overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_logger_that_does_not_exist_is_refused_with_the_one_that_is_meant(tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean cluster\.metrics\.loggers\.tensorboard"):
        config_of(tmp_path, "tensorbord={}")


def test_loggers_that_nothing_feeds_are_refused(tmp_path):
    settings = ["model.path=m", "data.train=d", "algorithm.name=sft", "algorithm.num_steps=10"]
    settings += [f"cluster.run_dir={tmp_path}", "cluster.metrics.enabled=false"]
    load_config(None, settings)
    with pytest.raises(ConfigError, match="set it to true"):
        load_config(None, [*settings, f"{LOGGERS}.tensorboard={{}}"])


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_library_that_is_not_installed_is_named_with_its_extra(tmp_path, name):
    if find_spec(name) is not None:
        pytest.skip(f"{name} is installed here")
    assert f"pip install 'attune[{name}]'" in refusal(tmp_path, f"{name}={{}}")


def test_the_many_trainings_of_a_mixture_take_no_logger(tmp_path):
    of_pairs = ["model.path=m", "data.train=d", "algorithm.name=reward_model"]
    asked = [*of_pairs, "algorithm.num_steps=10", "feedback.mixture.annotator=who"]
    asked += [f"cluster.run_dir={tmp_path}"]
    load_config(None, asked)
    with pytest.raises(ConfigError, match=r"loggers\.tensorboard: feedback\.mixture is many"):
        load_config(None, [*asked, f"{LOGGERS}.tensorboard={{}}"])


def test_a_second_file_must_have_a_place_and_be_ours(tmp_path):
    check_loggers(config_of(tmp_path, f"jsonl.path={tmp_path / 'new' / 'rows.jsonl'}"))
    (tmp_path / "file").write_text("x")
    assert "cannot be written" in refusal(tmp_path, f"jsonl.path={tmp_path / 'file' / 'rows'}")
    assert "cannot be written" in refusal(tmp_path, f"jsonl.path={tmp_path}")
    assert "cannot be written" in refusal(tmp_path, "jsonl.path=/proc/rows.jsonl")
    assert "something else" in refusal(tmp_path, f"jsonl.path={tmp_path / 'file'}")
    assert "would be copied" in refusal(tmp_path, f"jsonl.path={tmp_path / 'metrics.jsonl'}")
    (tmp_path / "loggers").mkdir()
    begun = config_of(tmp_path, f"jsonl.path={tmp_path / 'file'}")
    noted = json.dumps([target_of(begun, "jsonl"), "id", 3, []])
    (tmp_path / "loggers" / "jsonl.json").write_text(noted)  # the run was begun with it
    check_loggers(begun)
    (tmp_path / "other").write_text("x")
    assert "something else" in refusal(tmp_path, f"jsonl.path={tmp_path / 'other'}")


def test_wandb_needs_a_key_unless_it_is_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    assert "export WANDB_API_KEY" in refusal(tmp_path, "wandb={}")
    check_loggers(config_of(tmp_path, "wandb.mode=offline"))
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    check_loggers(config_of(tmp_path, "wandb={}"))


def test_mlflow_needs_a_server_or_a_database_and_no_password(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(name, raising=False)
    assert "export MLFLOW_TRACKING_URI" in refusal(tmp_path, "mlflow={}")
    said = refusal(tmp_path, "mlflow.uri=https://me:hush-hush@host/x")
    assert "MLFLOW_TRACKING_PASSWORD" in said
    assert "hush-hush" not in said
    assert "sqlite:////data/mlruns.db" in refusal(tmp_path, "mlflow.uri=file:///data/mlruns")
    check_loggers(config_of(tmp_path, "mlflow.uri=sqlite:////data/mlflow.db"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    check_loggers(config_of(tmp_path, "mlflow={}"))


def test_paths_of_loggers_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_of("run", "jsonl.path=rows.jsonl", "mlflow.uri=sqlite:///mlflow.db")
    loggers = absolute_paths(config).cluster.metrics.loggers
    assert loggers.jsonl is not None
    assert loggers.jsonl.path == f"{tmp_path}/rows.jsonl"
    assert loggers.mlflow is not None
    assert loggers.mlflow.uri == f"sqlite:///{tmp_path}/mlflow.db"
    served = config_of("run", "mlflow.uri=http://host:5000")
    assert absolute_paths(served).cluster.metrics.loggers == served.cluster.metrics.loggers
