"""The demo, shortened: broken off in its second stage, taken up again, told and shown.

`ATTUNE_PICTURES=docs/images pytest tests/integration/test_demo.py` runs the whole demo, and makes
the README's pictures of it anew.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration import tour
from tests.integration.processes import family, gone, read_steps, wait_for_step

KEPT = os.environ.get("ATTUNE_PICTURES")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400 if KEPT else 600)]

ATTUNE = str(Path(sys.executable).with_name("attune"))
SHORT = [
    "sft.algorithm.num_steps=3",
    "sft.algorithm.optimizer.warmup_steps=0",
    "reward_model.algorithm.num_steps=60",
    "reward_model.cluster.checkpoint.interval=5",
    "algorithm.num_steps=2",
    "algorithm.optimizer.warmup_steps=0",
    "data.validation_prompts=8",
]

if KEPT:
    SHORT = []


def demo(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [ATTUNE, "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A background job inherits an ignored SIGINT; a person at a terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


def test_a_demo_that_was_stopped_goes_on_where_it_was(folder: Path) -> None:
    out, shared = folder / "demo", set(Path("/dev/shm").glob("deepspeed*"))
    process = demo("--out", str(out), "--seed", "3", *SHORT)
    wait_for_step(out / "reward_model", 6, process)
    processes = family(process.pid)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 1, output
    assert output.splitlines()[-1] == f"stopped; go on with: attune demo --out {out} --resume"
    assert gone(processes, within_s=30), "processes outlived their driver"
    sft = (out / "sft" / "summary.json").read_bytes()

    again = demo("--out", str(out))
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 2
    assert output.strip().count("\n") == 0
    assert "--resume" in output

    resumed = demo("--out", str(out), "--resume")
    output, _ = resumed.communicate(timeout=2000 if KEPT else 400)
    assert resumed.returncode == 0, output
    assert "RLOO" in output.splitlines()[-2]
    assert f"{read_steps(out / 'run')[-1]} steps" in output.splitlines()[-2]
    assert (out / "report.html").exists()
    assert (out / "sft" / "summary.json").read_bytes() == sft, "a finished stage ran again"
    steps = read_steps(out / "reward_model")
    assert steps == list(range(1, len(steps) + 1))
    assert KEPT or (len(steps), read_steps(out / "run")) == (60, [1, 2])
    assert set(Path("/dev/shm").glob("deepspeed*")) <= shared, "shared memory outlived the ranks"


@pytest.mark.skipif(tour.CHROMIUM is None, reason="needs a browser: the Debian package `chromium`")
def test_a_newcomer_is_shown_what_the_demo_did(folder: Path, tmp_path: Path) -> None:
    """Needs the run of the test above."""
    seen = tour.walk(folder / "demo", "run", Path(KEPT) if KEPT else tmp_path)
    assert "RLOO" in seen["overview"]
    assert f"of {read_steps(folder / 'demo' / 'run')[-1]}" in seen["overview"]
    rewards = [float(word) for word in re.findall(r"-?[\d.]+", seen["rewards"].replace("−", "-"))]
    assert len(rewards) > 10
    assert rewards == sorted(rewards, reverse=True)
    assert "world/prompts.parquet" in seen["sample"]
    assert "log-prob: " in seen["token"]
    assert {"collector", "learner-0", "engine-0"} <= set(seen["timeline"].split())
