"""A reward service grows and shrinks and loses a replica while two runs train against it."""

import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.events import read_events
from configs.schema import RunConfig
from tests.faults.accounting import books
from tests.faults.injection import kill_process, until, wait_for_steps
from tests.faults.serving import Crowd, Service, expected_score, write_judge
from tests.integration.conftest import *  # noqa: F403 - its models and prompts
from tests.integration.loop import tiny_run
from tests.integration.processes import free_port, read_steps
from tests.integration.test_run import start

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]

MOST_KILLS = 5
STEPS = 400
"""More than are reached: the runs are stopped once everything has happened."""


def wrong_scores(config: RunConfig) -> int:
    """Replies in the run's experience whose score is not what the judge says of their text."""
    wrong = 0
    for file in Path(config.cluster.run_dir, "experience").rglob("*.parquet"):
        for row in pq.ParquetFile(file).read(["reply", "rewards"]).to_pylist():
            wrong += abs(dict(row["rewards"])["judge"] - expected_score(row["reply"])) > 1e-9
    return wrong


def judge_failures(config: RunConfig) -> list[dict]:
    events = read_events(config.cluster.run_dir)
    return [event for event in events if event["kind"] == "judge_failed"]


def kill_judge(busy: Path) -> bool:
    """Kill a replica that is at a run's request, unless it has just finished."""
    for mark in busy.iterdir():
        try:
            kill_process(int(mark.name))
        except ProcessLookupError:
            continue
        finally:
            mark.unlink(missing_ok=True)
        return True
    return False


def test_replicas_go_1_3_1_under_load_and_one_killed_in_mid_request_costs_two_runs_nothing(
    world_model: Path, world_prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ATTUNE_REWARD_TOKEN", raising=False)
    # How often Serve's proxy tells of its queue: every 10 s where this is not set.
    monkeypatch.setenv("RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "1")
    busy, judge, port = tmp_path / "busy", tmp_path / "slow_judge.py", free_port()
    write_judge(judge, busy, seconds=0.3)

    def config(name: str, *overrides: str) -> RunConfig:
        (tmp_path / name).mkdir()
        return tiny_run(
            world_model,
            world_prompts,
            tmp_path / name / "run",
            f"feedback.rewards.judge.path={judge}",
            "algorithm.max_staleness=1",
            f"algorithm.num_steps={STEPS}",
            "cluster.checkpoint.interval=200",
            f"cluster.reward_service.port={port}",
            *overrides,
        )

    served = config(
        "service",
        "cluster.reward_service.max_replicas=3",
        "cluster.reward_service.target_requests=2",
        "cluster.reward_service.upscale_delay_s=1",
        "cluster.reward_service.downscale_delay_s=5",
        "cluster.reward_service.look_back_s=3",
        "cluster.reward_service.batch_requests=1",
        "cluster.reward_service.max_queued=16",
    )
    url = f"http://127.0.0.1:{port}"
    with Service(served, tmp_path) as service:
        runs = [config(f"run{n}", f"feedback.service={url}", f"data.seed={n}") for n in (1, 2)]
        folders = [Path(run.cluster.run_dir) for run in runs]
        processes = [start(run) for run in runs]
        try:
            for folder, process in zip(folders, processes, strict=True):
                wait_for_steps(folder, 2, process)
            with Crowd(url, 10) as crowd:
                up_s = service.wait_for(3)
                kills = 0
                while kills < MOST_KILLS and not any(judge_failures(run) for run in runs):
                    until("a run's request", lambda: list(busy.iterdir()), processes[0])
                    kills += kill_judge(busy)
                    time.sleep(2)
                service.wait_for(3)
                reached = [read_steps(folder)[-1] for folder in folders]
                for folder, process, step in zip(folders, processes, reached, strict=True):
                    wait_for_steps(folder, step + 2, process)
            down_s = service.wait_for(1)
            reached = [read_steps(folder)[-1] for folder in folders]
            for folder, process, step in zip(folders, processes, reached, strict=True):
                wait_for_steps(folder, step + 2, process)
        finally:
            outputs = []
            for process in processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
                outputs.append(process.communicate(timeout=180)[0])
    failures = [failure for run in runs for failure in judge_failures(run)]
    done = [read_steps(folder)[-1] for folder in folders]
    print(
        f"MEASURED 1 to 3 replicas in {up_s:.0f} s, 3 to 1 in {down_s:.0f} s; killed {kills} in "
        f"mid-request, requests asked again {len(failures)}; steps {done}; other program "
        f"{dict(crowd.statuses)}; replicas {service.counts()}"
    )
    assert failures, "no request of a run was hit: the test shows nothing"
    assert all("--resume" in output for output in outputs), outputs
    assert crowd.statuses[200] > 0
    assert crowd.wrong == 0
    for run, steps in zip(runs, done, strict=True):
        algorithm = run.algorithm.model_copy(update={"num_steps": steps})
        found = books(run.model_copy(update={"algorithm": algorithm}))
        assert found.are_right, (found, read_events(run.cluster.run_dir))
        assert found.discarded == 0, "a lost replica costs no step"
        assert wrong_scores(run) == 0
