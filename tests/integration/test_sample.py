"""`attune sample` as users call it: judged replies in a file that offline methods read."""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from configs.load import to_yaml
from rl.data.encode import load_lists
from rl.folders import load_tokenizer
from tests.integration.loop import tiny_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ATTUNE = str(Path(sys.executable).with_name("attune"))


def sample(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ATTUNE, "sample", *arguments], capture_output=True, text=True, timeout=240, check=False
    )


def test_replies_are_judged_written_and_read_back_as_lists(
    world_model: Path, world_prompts: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "run.yaml", tmp_path / "data" / "replies.parquet"
    file.write_text(to_yaml(tiny_run(world_model, world_prompts, tmp_path / "unused")))
    done = sample(str(file), "--out", str(out), "--samples", "4", "--prompts", "70")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = pq.read_table(out).to_pylist()
    assert len(rows) == 70
    for row in rows:
        assert row["place"]
        assert len(row["replies"]) == len(row["scores"]) == 4
        # By hand, as the judge of `tiny_run` says.
        expected = [reply.count(" ") / 24 - 0.1 * reply.count(".") for reply in row["replies"]]
        assert row["scores"] == pytest.approx(expected)
        assert row["rewards/judge"] == pytest.approx(expected)
    assert len({reply for row in rows for reply in row["replies"]}) > 200
    items = load_lists(out, load_tokenizer(world_model), max_length=64, overlong="error")
    assert len(items) == 70
    best = sum(max(row["scores"]) for row in rows) / 70
    line = next(line for line in done.stdout.splitlines() if line.split()[:1] == ["4"])
    assert float(line.split()[1]) == pytest.approx(best, abs=6e-4)

    again = sample(str(file), "--out", str(out))
    assert again.returncode == 2
    assert "exists" in again.stderr
