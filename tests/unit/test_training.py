"""Following a learner from the driver."""

import logging
import threading
from pathlib import Path

import pytest

from cluster import training
from cluster.progress import RunProgress
from configs.load import load_config


@pytest.mark.parametrize("has_started", [False, True])
def test_a_learner_that_finds_no_room_is_spoken_of(
    has_started: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = ["model.path=m", "data.train=d", "algorithm.name=sft", "algorithm.num_steps=10"]
    config = load_config(None, [*settings, f"cluster.run_dir={tmp_path}"])
    if has_started:
        (tmp_path / "logs").mkdir()
        (tmp_path / "logs" / "learner-0.log").write_text("it loads its model\n")
    monkeypatch.setattr(training, "SAID_AFTER_S", 0.3)
    ended = threading.Event()
    threading.Timer(1.5, ended.set).start()
    with caplog.at_level(logging.WARNING), RunProgress(10, "rloo") as progress:
        training._follow(config, ended, progress, training.never)
    said = [record for record in caplog.records if "cluster.learner.labels" in record.getMessage()]
    assert len(said) == (not has_started)
