"""`attune evaluate` as users call it: two engines, a reward function, a table or JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.compare import render, summarise
from cluster.evaluation import JudgedReply
from rl.world.grammar import vocabulary
from rl.world.model import write_model

NUM_PROMPTS = 12
REWARD = """
def reward(prompts, replies, rows):
    return [float(len(reply.split())) + row["bonus"] for reply, row in zip(replies, rows)]

def broken(prompts, replies, rows):
    return [float("nan")] * len(replies)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two untrained policies, held-out prompts, a reward file and a run's YAML."""
    folder = tmp_path_factory.mktemp("evaluate")
    for seed in (1, 2):
        write_model(folder / f"policy-{seed}", seed=seed, hidden_size=64, num_layers=2)
    words = vocabulary()
    rows = [{"prompt": " ".join(words[i : i + 4]), "bonus": i % 3} for i in range(NUM_PROMPTS + 8)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "judge.py").write_text(REWARD)
    config = {
        "model": {"path": str(folder / "policy-1"), "max_length": 64},
        "data": {
            "train": str(folder / "prompts.jsonl"),
            "validation": str(folder / "prompts.jsonl"),
            "prompts_per_step": 4,
            "samples_per_prompt": 2,
            "sampling": {"max_new_tokens": 24},
        },
        "feedback": {
            "rewards": {"words": {"kind": "function", "path": str(folder / "judge.py")}},
            "attempts": 1,
        },
        "algorithm": {"name": "rloo", "num_steps": 1},
        "cluster": {
            "run_dir": str(folder / "run"),
            "rollout": {"kv_cache_gib": 0.05, "max_num_seqs": 16, "cpus_per_engine": 0.5},
            "dashboard": False,
        },
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


def evaluate(folder: Path, policy: str, baseline: str, *extra: str) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).with_name("attune")), "evaluate", str(folder / "run.yaml")]
    command += ["--policy", str(folder / policy), "--baseline", str(folder / baseline), *extra]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("RAY_AUTH_MODE", None)  # as on a user's machine: with a token
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=environment, check=False
    )


@pytest.mark.slow
def test_a_policy_against_itself_differs_by_exactly_nothing(folder):
    done = evaluate(folder, "policy-1", "policy-1", "--prompts", str(NUM_PROMPTS), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    words = result["rewards"]["words"]
    assert result["num_prompts"] == NUM_PROMPTS
    assert words["policy"] == words["baseline"] > 0
    assert words["difference"] == {"mean": 0, "low": 0, "high": 0}
    assert words["win_rate"]["mean"] == 0.5
    assert result["length"]["difference"]["mean"] == 0
    assert result["eos_rate"]["policy"] == result["eos_rate"]["baseline"]


@pytest.mark.slow
def test_the_table_agrees_with_every_reply_that_was_written_down(folder):
    done = evaluate(folder, "policy-2", "policy-1", "--prompts", "999")
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "run" / "evaluate" / "comparison.json").read_text())
    policy, baseline = record["replies"]["policy"], record["replies"]["baseline"]
    # All held-out rows were asked, the same of both, and the seeds alone do not make the replies.
    assert [row["prompt"] for row in policy] == [row["prompt"] for row in baseline]
    assert len(policy) == NUM_PROMPTS + 8
    assert [row["reply"] for row in policy] != [row["reply"] for row in baseline]
    assert all(
        row["rewards"]["words"] == len(row["reply"].split()) + index % 3
        for index, row in enumerate(policy)
    )
    mean = sum(row["rewards"]["words"] for row in policy) / len(policy)
    row = next(line for line in done.stdout.splitlines() if line.startswith("words"))
    assert row.split()[1] == f"{mean:.3f}"


@pytest.mark.slow
def test_a_judge_that_fails_ends_with_1_and_its_own_words(folder):
    override = f"feedback.rewards.words.path={folder / 'judge.py'}:broken"
    done = evaluate(folder, "policy-1", "policy-1", override)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert "reward words returned nan for reply 0" in line
    assert str(folder / "run" / "evaluate" / "logs") in line


def test_a_folder_that_is_no_model_is_refused_by_the_options_name(folder):
    done = evaluate(folder, "policy-1", "policy-3")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: --baseline: {folder / 'policy-3'} is not a folder")


def test_offline_settings_have_no_rewards_to_judge_by(folder):
    offline = ("algorithm.correction.mode=none", "algorithm.kl.coef=0", "algorithm.ratio=none")
    done = evaluate(
        folder, "policy-1", "policy-2", "algorithm.name=sft", "algorithm.advantage=none",
        "data.samples_per_prompt=1", "feedback.rewards.words=null", *offline,
    )  # fmt: skip
    assert done.returncode == 2
    assert "give the YAML of an online run" in done.stderr


def test_no_prompts_is_refused(folder):
    done = evaluate(folder, "policy-1", "policy-2", "--prompts", "0")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--prompts is 0" in done.stderr


def replies(scores: list[float], lengths: list[int], endings: list[str]) -> list[JudgedReply]:
    return [
        JudgedReply(prompt="", reply="", num_tokens=n, finish_reason=end, rewards={"taste": score})
        for score, n, end in zip(scores, lengths, endings, strict=True)
    ]


def test_differences_win_rates_and_endings_are_those_worked_out_by_hand():
    policy = replies([1, 2, 3, 4], [3, 3, 3, 3], ["stop", "stop", "stop", "length"])
    baseline = replies([0, 2, 4, 1], [1, 2, 3, 4], ["stop", "length", "length", "stop"])
    result = summarise(policy, baseline)
    taste = result["rewards"]["taste"]
    assert (taste["policy"], taste["baseline"]) == (2.5, 1.75)
    assert taste["difference"]["mean"] == 0.75
    assert taste["difference"]["low"] < 0.75 < taste["difference"]["high"]
    assert taste["win_rate"]["mean"] == 0.625  # two won, one equal, one lost
    assert result["length"]["policy"] - result["length"]["baseline"] == 0.5
    assert result["length"]["difference"]["mean"] == 0.5
    assert [result["eos_rate"][side]["mean"] for side in ("policy", "baseline")] == [0.75, 0.5]
    table = render({"policy": "new", "baseline": "old"} | result).splitlines()
    row = next(line for line in table if line.startswith("taste"))
    assert row.split()[1:4] == ["2.500", "1.750", "+0.750"]
    assert "62.5%" in row
    assert table[-1].split() == ["ended", "by", "itself", "75.0%", "50.0%"]
