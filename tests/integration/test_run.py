"""Whole runs through the public command: ledger, staleness, equality with a plain loop, kills."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from cluster.groups import build_experiences, prompt_index, sample_seed
from cluster.inputs import read_inputs
from cluster.ledger import read_ledger
from cluster.run import probe_sequences
from cluster.scoring import merge_scores, reference_group, reward_groups
from configs.load import to_yaml
from configs.schema import RunConfig
from tests.integration.loop import start_loop, stop, tiny_run
from tests.integration.processes import family, gone, heard_from_afar, wait_for_step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ATTUNE = str(Path(sys.executable).with_name("attune"))


def command(config: RunConfig, *options: str) -> list[str]:
    file = Path(config.cluster.run_dir).parent / "run.yaml"
    file.write_text(to_yaml(config))
    return [ATTUNE, "run", str(file), *options]


def finish(config: RunConfig, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(config, *options),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        cwd=Path(config.cluster.run_dir).parent,
    )


def start(config: RunConfig, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(config, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A background job inherits an ignored SIGINT; a person at a terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def assert_each_group_once(config: RunConfig) -> None:
    ledger = read_ledger(config.cluster.run_dir)
    ids, steps = ledger["group_id"].to_pylist(), ledger["step"].to_pylist()
    per_step, num_steps = config.data.prompts_per_step, config.algorithm.num_steps
    assert len(ids) == len(set(ids)) == per_step * num_steps
    assert sorted(set(steps)) == list(range(1, num_steps + 1))
    used = [
        row["group_id"]
        for file in Path(config.cluster.run_dir, "experience").rglob("*.parquet")
        for row in pq.ParquetFile(file).read(["group_id", "sample"]).to_pylist()
        if row["sample"] == 0
    ]
    assert sorted(used) == sorted(ids)


def sampled_tokens(config: RunConfig) -> dict[tuple[int, int], list[int]]:
    rows = [
        row
        for file in Path(config.cluster.run_dir, "experience").rglob("*.parquet")
        for row in pq.ParquetFile(file).read(["group_id", "sample", "tokens"]).to_pylist()
    ]
    return {(row["group_id"], row["sample"]): row["tokens"] for row in rows}


def plain_loop(config: RunConfig) -> dict[tuple[int, int], list[int]]:
    """Sample, score, learn, sync, one after the other: the synchronous algorithm, spelled out."""
    import asyncio

    inputs = read_inputs(config)
    probes = probe_sequences([prompt.tokens for prompt in inputs.train], 4, 64)
    learner, engines = start_loop(config, probes)
    judge, reference = reward_groups(config)["judge"], reference_group(config, config.model.path)
    ray.get(learner.publish.remote(0), timeout=60)
    data, tokens = config.data, {}

    async def judged(rollouts: list) -> tuple[list, list]:
        return await judge.score(rollouts), await reference.score(rollouts)

    for step in range(1, config.algorithm.num_steps + 1):
        from actors.rollout import SampleRequest

        ids = range((step - 1) * data.prompts_per_step, step * data.prompts_per_step)
        requests = [
            SampleRequest(
                group_id=group,
                prompt=inputs.train[prompt_index(group, len(inputs.train), data.seed)],
                num_samples=data.samples_per_prompt,
                seed=sample_seed(data.seed, group, data.samples_per_prompt),
            )
            for group in ids
        ]
        groups = ray.get(engines[0].actor.generate.remote(requests), timeout=60)
        flat = [rollout for group in groups for rollout in group]
        scores, references = asyncio.run(judged(flat))
        experiences = list(
            build_experiences(groups, merge_scores(scores), [r for p in references for r in p])
        )
        ray.get(learner.update.remote(experiences), timeout=60)
        ray.get(learner.publish.remote(step), timeout=60)
        tokens |= {(r.group_id, r.sample): r.tokens.tolist() for r in flat}
    stop(learner, [*engines])
    judge.end()
    reference.end()
    return tokens


@pytest.mark.usefixtures("ray_cluster")
def test_staleness_zero_is_the_plain_synchronous_loop_to_the_last_token(
    world_model: Path, world_prompts: Path, tmp_path: Path
) -> None:
    config = tiny_run(world_model, world_prompts, tmp_path / "run", "algorithm.num_steps=6")
    result = finish(config)
    assert result.returncode == 0, result.stderr
    assert_each_group_once(config)
    expected = plain_loop(config)
    assert len(expected) == 6 * 8 * 4
    assert sampled_tokens(config) == expected


def test_with_staleness_two_no_sample_is_older_and_some_are_that_old(
    world_model: Path, world_prompts: Path, tmp_path: Path
) -> None:
    config = tiny_run(
        world_model,
        world_prompts,
        tmp_path / "run",
        "algorithm.num_steps=10",
        "algorithm.max_staleness=2",
        "cluster.learner.num_workers=2",
    )
    (tmp_path / "rows.jsonl").write_text(world_prompts.read_text())
    result = finish(config, "cluster.run_dir=run", "data.train=rows.jsonl")  # relative
    assert result.returncode == 0, result.stderr
    assert_each_group_once(config)
    ledger = read_ledger(config.cluster.run_dir).to_pylist()
    ages = [row["step"] - 1 - row["oldest_version"] for row in ledger]
    assert max(ages) <= 2
    assert max(ages) > 0, "nothing ran ahead: the test shows nothing"


def test_a_run_whose_driver_is_killed_resumes_and_uses_each_group_once(
    world_model: Path, world_prompts: Path, tmp_path: Path
) -> None:
    config = tiny_run(
        world_model,
        world_prompts,
        tmp_path / "run",
        "algorithm.num_steps=14",
        "cluster.checkpoint.interval=4",
    )
    process = start(config)
    wait_for_step(tmp_path / "run", 6, process)
    processes = family(process.pid)
    assert len(processes) > 5
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert gone(processes, within_s=120), "processes outlived their driver"

    result = finish(config, "--resume")
    assert result.returncode == 0, result.stderr
    steps = [
        json.loads(line)["step"]
        for line in Path(config.cluster.run_dir, "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, 15))
    assert_each_group_once(config)
    discarded = list(Path(config.cluster.run_dir, "discarded", "ledger").glob("*"))
    assert 0 < len(discarded) <= 4, "the steps after the checkpoint were run again"

    again = finish(config)
    assert again.returncode == 2
    assert "already holds a run" in again.stderr


def test_ctrl_c_stops_cleanly_and_the_run_can_be_resumed(
    world_model: Path, world_prompts: Path, tmp_path: Path
) -> None:
    config = tiny_run(
        world_model,
        world_prompts,
        tmp_path / "run",
        "algorithm.num_steps=12",
        "cluster.checkpoint.interval=2",
    )
    process = start(config)
    wait_for_step(tmp_path / "run", 4, process)
    processes = family(process.pid)
    assert heard_from_afar(processes) == []
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "--resume" in output
    assert "Traceback" not in output
    assert gone(processes, within_s=30), "processes outlived their driver"
    result = finish(config, "--resume")
    assert result.returncode == 0, result.stderr
    assert_each_group_once(config)
