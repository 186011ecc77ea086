"""Relative paths become absolute; suffixes and absent paths stay."""

import os
from pathlib import Path

from configs.load import load_config
from configs.paths import absolute_paths

RECIPE = Path(__file__).parents[2] / "configs" / "rloo.yaml"


def test_every_path_of_a_run_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(
        RECIPE,
        [
            "model.path=m",
            "model.critic=c",
            "data.train=rows:train",
            "data.validation=/held/out.jsonl",
            "feedback.rewards.rm.path=judges/rm",
            "feedback.rewards.rule.kind=function",
            "feedback.rewards.rule.path=judge.py:score",
            "cluster.run_dir=runs/x",
        ],
    )
    made = absolute_paths(config)
    here = os.getcwd()
    assert (made.model.path, made.model.critic) == (f"{here}/m", f"{here}/c")
    assert made.model.reference is None
    assert made.data.train == f"{here}/rows:train"
    assert made.data.validation == "/held/out.jsonl"
    assert made.feedback.rewards["rm"].path == f"{here}/judges/rm"
    assert made.feedback.rewards["rule"].path == f"{here}/judge.py:score"
    assert made.cluster.run_dir == f"{here}/runs/x"
    assert made.algorithm == config.algorithm
