"""Active selection in a run: only what is worth a label is judged, and labels are counted."""

import json
from pathlib import Path

import pytest

from cluster.ablation_results import labels_used
from cluster.ledger import read_ledger
from tests.integration.loop import tiny_run
from tests.integration.test_run import finish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

COUNTING = """
from pathlib import Path

def reward(prompts, replies, rows):
    with Path({log!r}).open("a") as file:
        file.write(f"{{len(replies)}}\\n")
    return [len(reply) / 100 for reply in replies]
"""


def test_only_replies_that_were_selected_are_judged(
    world_model: Path, world_prompts: Path, tmp_path: Path
) -> None:
    log, judge = tmp_path / "judged.txt", tmp_path / "counting.py"
    judge.write_text(COUNTING.format(log=str(log)))
    config = tiny_run(
        world_model, world_prompts, tmp_path / "run",
        "algorithm.name=online_dpo", "algorithm.num_steps=3", "data.samples_per_prompt=2",
        "algorithm.optimizer.learning_rate=1e-3", f"feedback.rewards.judge.path={judge}",
        "feedback.selection={by: hybrid, pool: 3}", "feedback.label_budget=48",
    )  # fmt: skip
    done = finish(config)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_ledger(config.cluster.run_dir).to_pylist()
    for step in (1, 2, 3):
        own = [row["status"] for row in rows if row["step"] == step]
        assert (own.count("used"), own.count("unlabelled"), len(own)) == (8, 16, 24)
    assert len({row["group_id"] for row in rows}) == 72, "a group was taken twice"
    # 3 steps of 8 pairs, and 8 held-out replies before and after: what the judge itself counted.
    judged = sum(int(line) for line in log.read_text().split())
    assert judged == 3 * 16 + 2 * 8
    assert labels_used(Path(config.cluster.run_dir)) == {1: 16, 2: 32, 3: 48}
    metrics = [
        json.loads(line)
        for line in Path(config.cluster.run_dir, "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["labels"] for row in metrics] == [16, 16, 16]


def test_resampling_stops_where_the_budget_ends(
    world_model: Path, world_prompts: Path, tmp_path: Path
) -> None:
    judge = tmp_path / "same.py"
    # Three groups in four score the same throughout, so DAPO would resample without an end.
    judge.write_text(
        "def reward(prompts, replies, rows):\n"
        "    return [len(r) * (len(p) % 4 == 0) / 9 for p, r in zip(prompts, replies)]\n"
    )
    budget = 3 * 32 + 20  # twenty more replies than the steps need: five groups of four
    config = tiny_run(
        world_model, world_prompts, tmp_path / "run",
        "algorithm.name=dapo", "algorithm.num_steps=3", f"feedback.rewards.judge.path={judge}",
        f"feedback.label_budget={budget}", "algorithm.mask_truncated=false",
    )  # fmt: skip
    done = finish(config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert labels_used(Path(config.cluster.run_dir))[3] == budget
