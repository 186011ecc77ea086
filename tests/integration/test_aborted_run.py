"""A run that its judge ends: the folder tells why, and the run goes on once that is mended."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from tests.integration.loop import tiny_run
from tests.integration.test_run import finish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_judge_that_raises_leaves_a_bundle_that_names_it(
    world_model: Path,
    world_prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JUDGE_TOKEN", "correct-horse-battery")
    judge = tmp_path / "strict_judge.py"
    judge.write_text(
        "import os\n"
        "def reward(prompts, replies, rows):\n"
        "    raise KeyError('no price for ' + os.environ['JUDGE_TOKEN'])\n"
    )
    config = tiny_run(
        world_model,
        world_prompts,
        tmp_path / "run",
        f"feedback.rewards.judge.path={judge}",
        "feedback.attempts=1",
        "algorithm.num_steps=2",
    )
    result = finish(config, "--resume")  # begins it: there is none yet
    assert result.returncode == 1, result.stderr
    assert "attune inspect" in result.stderr
    bundle = tmp_path / "run" / "failure"
    facts = json.loads((bundle / "failure.json").read_text())
    assert facts["cause"]["name"] == "judge"
    assert "reward judge failed 1 times" in (bundle / "error.txt").read_text()
    batch = json.loads((bundle / "batch.json").read_text())
    assert batch
    assert all(row["prompt"] and "reply" in row for row in batch)
    state = json.loads((bundle / "cluster.json").read_text())
    assert [node["Alive"] for node in state["nodes"]] == [True]
    assert any("Collector" in actor["ActorClassName"] for actor in state["actors"])
    logs = {path.name for path in (bundle / "logs").iterdir()}
    assert {"driver.log", "collector.log", "engine-0.log", "learner-0.log"} <= logs
    everything = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [p for p in everything if b"correct-horse-battery" in p.read_bytes()]
    assert "correct-horse-battery" not in result.stderr + result.stdout

    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "run"), "--failure"])
    assert shown.exit_code == 0, shown.output
    for part in ("reward judge failed 1 times", "no price for", "collector.log", "batch "):
        assert part in shown.output
    state = json.loads(CliRunner().invoke(app, ["inspect", str(tmp_path / "run"), "--json"]).output)
    assert state["state"] == "failed"
