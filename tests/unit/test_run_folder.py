"""Where a run may be, and whether it can go on with the settings that it is given."""

import os
import signal

import pytest

from cluster.auth import ensure_token
from cluster.inputs import prepare_run_dir
from cluster.job_metadata import INJECTED, metadata_of
from cluster.run_folder import ROOT, check_run_folder, refuse_redacted
from cluster.runtime import runtime_env
from cluster.signals import handlers_kept, stop_on_sigterm
from configs.errors import ConfigError
from configs.load import load_config


def config_of(folder, *overrides):
    return load_config(
        None,
        ["model.path=/m", "data.train=/d.jsonl", "algorithm.name=sft", "algorithm.num_steps=4",
         "algorithm.optimizer.learning_rate=1e-3", f"cluster.run_dir={folder}", *overrides],
    )  # fmt: skip


def test_resuming_where_no_run_is_begins_one(tmp_path):
    folder = prepare_run_dir(config_of(tmp_path / "run"), resume=True)
    assert load_config(folder / "config.yaml") == config_of(tmp_path / "run")


def test_a_run_goes_on_with_the_settings_it_began_with(tmp_path):
    prepare_run_dir(config_of(tmp_path / "run"), resume=False)
    prepare_run_dir(config_of(tmp_path / "run"), resume=True)
    with pytest.raises(ConfigError, match="already holds a run"):
        prepare_run_dir(config_of(tmp_path / "run"), resume=False)
    changed = config_of(tmp_path / "run", "algorithm.optimizer.max_grad_norm=0.25")
    with pytest.raises(ConfigError, match=r"^algorithm\.optimizer\.max_grad_norm is 0\.25 here"):
        prepare_run_dir(changed, resume=True)
    both = config_of(tmp_path / "run", "data.seed=5", "algorithm.optimizer.max_grad_norm=0.25")
    with pytest.raises(ConfigError, match=r"^data\.seed is 5"):  # the first of them
        prepare_run_dir(both, resume=True)


def test_where_it_runs_how_far_and_what_a_failure_asks_for_may_change(tmp_path):
    prepare_run_dir(config_of(tmp_path / "run"), resume=False)
    longer = config_of(
        tmp_path / "run", "algorithm.num_steps=9", "cluster.learner.num_workers=2",
        "cluster.checkpoint.keep=5", "algorithm.optimizer.learning_rate=2e-4",
        "feedback.deadline_s=99",
    )  # fmt: skip
    folder = prepare_run_dir(longer, resume=True)
    assert load_config(folder / "config.yaml") == longer


@pytest.mark.parametrize("inside", ["actors", "configs/demo", "cluster/runs/x"])
def test_a_run_inside_the_packages_is_refused(inside):
    with pytest.raises(ConfigError, match=r"cluster\.run_dir.*package"):
        check_run_folder(config_of(ROOT / inside))


def test_a_run_inside_another_run_its_model_or_its_data_is_refused(tmp_path):
    other = tmp_path / "other"
    (other / "logs").mkdir(parents=True)
    (other / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match="inside another run"):
        check_run_folder(config_of(other / "a" / "b"))
    (tmp_path / "link").symlink_to(other)
    with pytest.raises(ConfigError, match="inside another run"):
        check_run_folder(config_of(tmp_path / "link" / "a"))
    for field in ("model.path", "data.train"):
        (tmp_path / "source").mkdir(exist_ok=True)
        config = config_of(tmp_path / "source" / "run", f"{field}={tmp_path / 'source'}")
        with pytest.raises(ConfigError, match=f"inside {field}"):
            check_run_folder(config)
    check_run_folder(config_of(tmp_path / "beside"))
    check_run_folder(config_of(other))  # its own


def test_a_job_may_not_run_in_its_copy_of_the_working_directory(tmp_path, monkeypatch):
    work = tmp_path / "runtime_resources" / "working_dir_files" / "x"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    check_run_folder(config_of(work / "runs"))
    monkeypatch.setenv(INJECTED, '{"runtime_env": {}, "metadata": {"job_submission_id": "a"}}')
    with pytest.raises(ConfigError, match="absolute path"):
        check_run_folder(config_of(work / "runs"))
    check_run_folder(config_of(tmp_path / "runs"))


def test_secrets_are_not_stored_and_asked_for_again(tmp_path, monkeypatch):
    monkeypatch.setenv("STORE_PASSWORD", "open-sesame-1")
    config = config_of(tmp_path / "run", "data.system_prompt=say open-sesame-1")
    folder = prepare_run_dir(config, resume=False)
    assert "open-sesame" not in (folder / "config.yaml").read_text()
    prepare_run_dir(config, resume=True)  # the same run, by the same settings
    with pytest.raises(ConfigError, match=r"^data\.system_prompt is a secret"):
        refuse_redacted(load_config(folder / "config.yaml"))


def test_variables_that_a_job_was_given_are_not_given_twice(monkeypatch):
    whole = runtime_env()["env_vars"]
    assert "RAY_TRAIN_V2_ENABLED" in whole
    monkeypatch.setenv(INJECTED, '{"runtime_env": {"env_vars": {"RAY_TRAIN_V2_ENABLED": "1"}}}')
    assert runtime_env()["env_vars"].keys() == whole.keys() - {"RAY_TRAIN_V2_ENABLED"}


def test_metadata_names_method_model_folder_and_where_to_look(tmp_path):
    facts = {
        "attune_method": "sft",
        "attune_model": "/m",
        "attune_run_dir": str(tmp_path),
        "attune_report": str(tmp_path / "report.html"),
    }
    assert metadata_of(config_of(tmp_path)) == facts
    assert metadata_of(config_of(tmp_path), "http://127.0.0.1:8266") == facts | {
        "attune_pages": "http://127.0.0.1:8266/attune/"
    }


def test_sigterm_interrupts_once_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    try:
        stop_on_sigterm()
        ours = signal.getsignal(signal.SIGTERM)
        with handlers_kept():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as ray.init does
        assert signal.getsignal(signal.SIGTERM) is ours
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # what cleans up is not interrupted again
    finally:
        signal.signal(signal.SIGTERM, before)


def test_token_authentication_is_on_unless_the_environment_says_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    ensure_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    ensure_token()
    assert os.environ["RAY_AUTH_TOKEN"] == "given"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    ensure_token()
    assert "RAY_AUTH_TOKEN" not in os.environ
