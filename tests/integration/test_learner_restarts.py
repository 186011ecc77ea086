"""A learner that dies goes on by itself; one that cannot go on ends the run at once, by name."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cluster.events import read_events
from configs.load import load_config, to_yaml
from configs.schema import RunConfig
from tests.integration.loop import tiny_run
from tests.integration.processes import read_steps, wait_for_step
from tests.integration.test_run import ATTUNE, assert_each_group_once, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def world_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of the built-in world, whose better replies are imitated."""
    from rl.world.generate import Sizes, write_world

    tiny = Sizes(**(dict.fromkeys(Sizes.__dataclass_fields__, 8) | {"pairs": 96}))
    return write_world(tmp_path_factory.mktemp("world-pairs"), 0, tiny)["pairs"]


def sft_run(model: Path, pairs: Path, run_dir: Path, *overrides: str) -> RunConfig:
    """Imitation: a learner alone."""
    return load_config(
        None,
        [
            "algorithm.name=sft", f"model.path={model}", f"data.train={pairs}",
            "model.max_length=96", "data.prompts_per_step=8", "data.validation_fraction=0.2",
            "algorithm.num_steps=12", f"cluster.run_dir={run_dir}", "cluster.dashboard=false",
            *overrides,
        ],
    )  # fmt: skip


def begin_sft(config: RunConfig, *options: str) -> subprocess.Popen[str]:
    """`attune sft` in a process of its own."""
    file = Path(config.cluster.run_dir).parent / "sft.yaml"
    file.write_text(to_yaml(config))
    return subprocess.Popen(
        [ATTUNE, "sft", str(file), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A background job inherits an ignored SIGINT; a person at a terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def events(config: RunConfig, kind: str) -> list[dict]:
    return [event for event in read_events(config.cluster.run_dir) if event["kind"] == kind]


def kill_rank(config: RunConfig, rank: int, process: subprocess.Popen[str]) -> None:
    """SIGKILL a rank of the present attempt, once it has a checkpoint to go on from."""
    deadline = time.monotonic() + 240
    while not events(config, "checkpoint_saved"):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint was saved"
        time.sleep(0.05)
    os.kill(events(config, "learner_started")[-1]["pids"][rank], signal.SIGKILL)


def steps_of(config: RunConfig) -> list[int]:
    return read_steps(Path(config.cluster.run_dir))


def test_a_run_goes_on_by_itself_after_a_rank_was_killed(
    world_model: Path, world_prompts: Path, tmp_path: Path
) -> None:
    config = tiny_run(
        world_model, world_prompts, tmp_path / "run", "algorithm.num_steps=10",
        "cluster.checkpoint.interval=2", "cluster.learner.num_workers=2",
    )  # fmt: skip
    process = start(config)
    wait_for_step(tmp_path / "run", 4, process)
    kill_rank(config, 1, process)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    first, second = events(config, "learner_started")
    assert (first["attempt"], second["attempt"]) == (1, 2)
    assert 0 < second["version"] < 10
    assert [failure["restarted"] for failure in events(config, "learner_failure")] == [True]
    assert steps_of(config) == list(range(1, 11))
    assert_each_group_once(config)


def test_a_loss_that_is_no_number_ends_the_run_at_once_and_names_the_step(
    world_model: Path, world_pairs: Path, tmp_path: Path
) -> None:
    config = sft_run(
        world_model, world_pairs, tmp_path / "run", "algorithm.optimizer.learning_rate=1e30"
    )
    process = begin_sft(config)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "is NaN or infinite at step " in output
    assert "--resume" in output
    assert "Traceback" not in output
    assert len(events(config, "learner_started")) == 1, "it was tried again in vain"
    assert [failure["restarted"] for failure in events(config, "learner_failure")] == [False]
