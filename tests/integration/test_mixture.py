"""`attune reward-model` with a mixture: two tastes find their own models, also after a kill."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl.world.grammar import vocabulary
from tests.integration.processes import family, gone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ATTUNE = str(Path(sys.executable).with_name("attune"))
LIKE_LONG = [f"a{number}" for number in range(4)]
LIKE_SHORT = ["b0", "b1"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six annotators: four like the longer reply, two the shorter one."""
    rng, words = random.Random(0), [word for word in vocabulary() if word.isalpha()]
    rows = []
    for name in LIKE_LONG + LIKE_SHORT:
        for _ in range(48):
            short = " ".join(rng.sample(words, 3))
            long = " ".join(rng.sample(words, 12))
            best, worst = (long, short) if name in LIKE_LONG else (short, long)
            prompt = " ".join(rng.sample(words, 4))
            rows.append({"who": name, "prompt": prompt, "chosen": best, "rejected": worst})
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def command(model: Path, pairs: Path, out: Path, *more: str) -> list[str]:
    recipe = Path(__file__).parents[2] / "configs" / "demo" / "reward_model.yaml"
    return [
        ATTUNE, "reward-model", str(recipe), f"model.path={model}", f"data.train={pairs}",
        "data.prompts_per_step=16", "data.validation_fraction=0.25", "algorithm.num_steps=24",
        "algorithm.optimizer={learning_rate: 1e-3}", f"cluster.run_dir={out}",
        "cluster.dashboard=false", "feedback.mixture={annotator: who, max_rounds: 4}", *more,
    ]  # fmt: skip


def test_annotators_who_agree_find_one_model_even_when_killed_on_the_way(
    world_model: Path, pairs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    started = command(world_model, pairs, out)
    process = subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    first = out / "mixture" / "round=1" / "log_likelihoods.json"
    deadline = time.monotonic() + 240
    while not first.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    processes = family(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert gone(processes, within_s=120), "processes outlived their driver"
    # A mark that only a resume leaves: a first round that is run again would write its own.
    marked = [[value - 1000 for value in row] for row in json.loads(first.read_text())]
    first.write_text(json.dumps(marked))

    again = subprocess.run(
        [*started, "--resume"], capture_output=True, text=True, timeout=400, check=False
    )
    assert again.returncode == 0, again.stdout + again.stderr
    result = json.loads((out / "mixture.json").read_text())
    assert result["log_likelihoods"][0] < -1000 < result["log_likelihoods"][1]
    owners = result["assignment"]
    assert len({owners[name] for name in LIKE_LONG}) == 1
    assert len({owners[name] for name in LIKE_SHORT}) == 1
    assert owners["a0"] != owners["b0"]
    assert result["converged"]
    assert min(result["held_out_accuracy"].values()) > 0.8
    for number in ("0", "1"):
        folder = out / "models" / number
        assert (folder / "config.json").exists()
        assert (folder / "tokenizer.json").exists()
    assert not (out / "mixture").exists(), "rounds are left behind"
    assert "Annotators found their models" in again.stdout


def test_a_missing_column_is_refused_before_anything_starts(
    world_model: Path, pairs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    asked = command(world_model, pairs, out, "feedback.mixture.annotator=whom")
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "there is no whom (feedback.mixture.annotator)" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
