"""Preference methods through the public command: stored pairs, and SELM's iterations, resumed."""

import json
import os
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.ledger import read_ledger
from configs.load import load_config
from configs.schema import RunConfig
from rl.fingerprints import fingerprint
from tests.integration.processes import family, gone, wait_for_step
from tests.integration.test_run import assert_each_group_once, finish, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def world_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of the built-in world."""
    from rl.world.generate import Sizes, write_world

    tiny = Sizes(**(dict.fromkeys(Sizes.__dataclass_fields__, 8) | {"pairs": 96}))
    return write_world(tmp_path_factory.mktemp("world-pairs"), 0, tiny)["pairs"]


def small(name: str, model: Path, pairs: Path, run_dir: Path, *overrides: str) -> RunConfig:
    return load_config(
        None,
        [
            f"algorithm.name={name}", f"model.path={model}", f"data.train={pairs}",
            "model.max_length=96", "data.prompts_per_step=8", "data.sampling.max_new_tokens=16",
            "data.validation_fraction=0.2", "data.validation_prompts=4",
            "algorithm.optimizer.learning_rate=5e-4", f"cluster.run_dir={run_dir}",
            "cluster.dashboard=false", "cluster.rollout.max_num_seqs=64",
            "cluster.rollout.kv_cache_gib=0.05", *overrides,
        ],
    )  # fmt: skip


def metrics_of(config: RunConfig) -> list[dict]:
    lines = Path(config.cluster.run_dir, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_dpo_learns_from_stored_pairs_and_says_so(
    world_model: Path, world_pairs: Path, tmp_path: Path
) -> None:
    config = small(
        "dpo", world_model, world_pairs, tmp_path / "run", "algorithm.num_steps=12",
        "cluster.learner.num_workers=2",
    )  # fmt: skip
    result = finish(config)
    assert result.returncode == 0, result.stderr
    assert "DPO brought the pairs" in result.stdout
    rows = metrics_of(config)
    assert rows[0]["loss/preference"] == pytest.approx(0.693147, abs=1e-4)
    assert rows[0]["preference/accuracy"] == 0.5
    assert rows[-1]["loss/preference"] < 0.65
    assert all("time/sync" not in row for row in rows[:-1]), "nobody samples: nothing to sync"
    assert rows[-1]["probe/gap"] <= 1e-4
    assert_each_group_once(config)
    stored = pq.read_table(next(Path(config.cluster.run_dir, "experience").rglob("*.parquet")))
    assert set(stored["source"].to_pylist()) == {"stored"}
    assert set(stored["label"].to_pylist()) == {0.0, 1.0}
    assert stored["advantages"].null_count == len(stored)
    assert Path(config.cluster.run_dir, "report.html").exists()


def test_a_proxy_leaves_out_the_pairs_that_it_contradicts(
    world_model: Path, world_pairs: Path, tmp_path: Path
) -> None:
    config = small(
        "dpo", world_model, world_pairs, tmp_path / "run", "algorithm.num_steps=4",
        "feedback.rewards.gold.kind=gold", "feedback.rewards.gold.weight=0",
        "feedback.curate_by=gold",
    )  # fmt: skip
    result = finish(config)
    assert result.returncode == 0, result.stderr
    rows = metrics_of(config)
    for row in rows:
        assert row["units"] == round(row["feedback/kept_fraction"] * row["groups"])
    kept = sum(row["feedback/kept_fraction"] for row in rows) / len(rows)
    # Labels follow gold about four times in five (the world's temperature); ties are left out too.
    assert 0.5 < kept < 0.95
    judged = pq.read_table(next(Path(config.cluster.run_dir, "experience").rglob("*.parquet")))
    assert all("gold" in dict(row) for row in judged["rewards"].to_pylist())


def test_selm_goes_on_in_its_iterations_after_a_kill(
    world_model: Path, world_pairs: Path, tmp_path: Path
) -> None:
    judge = tmp_path / "judge.py"
    judge.write_text(
        "def reward(prompts, replies, rows):\n"
        "    return [len(set(r.split())) / 16 - 0.02 * len(r) / 80 for r in replies]\n"
    )
    config = small(
        "selm", world_model, world_pairs, tmp_path / "run", "algorithm.num_steps=9",
        "algorithm.iteration_steps=3", "cluster.checkpoint.interval=3", "cluster.checkpoint.keep=9",
        "feedback.rewards.judge.kind=function", f"feedback.rewards.judge.path={judge}",
    )  # fmt: skip
    process = start(config)
    wait_for_step(tmp_path / "run", 5, process)
    processes = family(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert gone(processes, within_s=120), "processes outlived their driver"
    result = finish(config, "--resume")
    assert result.returncode == 0, result.stderr
    assert [row["step"] for row in metrics_of(config)] == list(range(1, 10))
    assert_each_group_once(config)

    references = sorted(path.name for path in (tmp_path / "run" / "references").iterdir())
    assert references == ["step=000003", "step=000006"]
    first, moved = (weights(p) for p in (world_model, tmp_path / "run/references/step=000003"))
    assert first != moved, "the reference did not move"
    # Slices: iteration t reads the t-th third of the rows, and no other.
    rows = [
        (row["step"], row["prompt_row"])
        for file in Path(config.cluster.run_dir, "experience").rglob("*.parquet")
        for row in pq.ParquetFile(file).read(["step", "prompt_row"]).to_pylist()
    ]
    thirds = [{row for step, row in rows if (step - 1) // 3 == part} for part in range(3)]
    assert sum(map(len, thirds)) == len(set.union(*thirds)), "slices overlap"
    sources = [
        tuple(row["source"] for row in pq.ParquetFile(file).read(["source"]).to_pylist()[:3])
        for file in Path(config.cluster.run_dir, "experience").rglob("*.parquet")
    ]
    assert set(sources) == {("policy", "stored", "stored")}
    used = read_ledger(config.cluster.run_dir).to_pylist()
    starts = {row["step"]: row["oldest_version"] for row in used}
    assert starts[4] == starts[6] == 3, "an iteration samples from the policy it began with"


def weights(folder: Path) -> dict[str, tuple[float, float]]:
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    return {name: fingerprint(tensor) for name, tensor in tensors.items()}
