"""The demo, shortened: broken off in its second stage, taken up again, told in one sentence."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.processes import family, gone, wait_for_step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

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


def demo(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [ATTUNE, "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A background job inherits an ignored SIGINT; a person at a terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_a_demo_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    out, shared = tmp_path / "demo", set(Path("/dev/shm").glob("deepspeed*"))
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
    output, _ = resumed.communicate(timeout=400)
    assert resumed.returncode == 0, output
    assert "RLOO" in output.splitlines()[-2]
    assert "2 steps" in output.splitlines()[-2]
    assert (out / "report.html").exists()
    assert (out / "sft" / "summary.json").read_bytes() == sft, "a finished stage ran again"
    lines = (out / "reward_model" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 61))
    assert set(Path("/dev/shm").glob("deepspeed*")) <= shared, "shared memory outlived the ranks"
