"""A small grid from the user's own model and data: run, compared, broken off and taken up again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from configs.load import load_config, to_yaml
from tests.integration.loop import tiny_run
from tests.integration.processes import family, gone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ATTUNE = str(Path(sys.executable).with_name("attune"))


def ablate(file: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [ATTUNE, "ablate", str(file), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A background job inherits an ignored SIGINT; a person at a terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def replies(run_dir: Path) -> dict[tuple[int, int, int], str]:
    """(step, group, sample) -> reply."""
    rows = [
        row
        for file in sorted(run_dir.glob("experience/*/*.parquet"))
        for row in pq.ParquetFile(file).read(["step", "group_id", "sample", "reply"]).to_pylist()
    ]
    found = {(row["step"], row["group_id"], row["sample"]): row["reply"] for row in rows}
    assert len(found) == len(rows) > 0
    return found


def test_ctrl_c_stops_a_grid_that_says_how_it_goes_on(
    world_model: Path, world_prompts: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base.yaml"
    endless = tiny_run(
        world_model, world_prompts, tmp_path / "unused", "algorithm.num_steps=100000"
    )
    base.write_text(to_yaml(endless))
    file, out = tmp_path / "grid.yaml", tmp_path / "out"
    content = {
        "base": "base.yaml",
        "start": "none",
        "seeds": [0],
        "judge": "total",
        "cells": {"low": ["algorithm.kl.coef=0.01"]},
    }
    file.write_text(yaml.safe_dump(content))
    process = ablate(file, "--out", str(out))
    run = out / "seed=0" / "low"
    deadline = time.monotonic() + 240
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    processes = family(process.pid)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=150)
    assert process.returncode == 1, output
    assert "go on with: attune ablate" in output
    assert "Traceback" not in output
    assert gone(processes, within_s=30), "processes outlived their driver"
    assert not (run / "failure").exists(), "Ctrl-C is no failure"


def test_a_grid_that_was_killed_goes_on_and_compares_its_cells(
    world_model: Path, world_prompts: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(
        to_yaml(tiny_run(world_model, world_prompts, tmp_path / "unused", "algorithm.num_steps=3"))
    )
    file = tmp_path / "grid.yaml"
    content = {
        "base": "base.yaml",
        "start": "none",
        "seeds": [0, 1],
        "judge": "total",
        "cells": {"low": ["algorithm.kl.coef=0.01"], "high": ["algorithm.kl.coef=0.5"]},
    }
    file.write_text(yaml.safe_dump(content))
    out = tmp_path / "out"
    process = ablate(file, "--out", str(out))
    first = out / "seed=0" / "low" / "summary.json"
    deadline = time.monotonic() + 240
    while not first.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    processes = family(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert gone(processes, within_s=120), "processes outlived their driver"
    written = first.stat().st_mtime_ns

    again = ablate(file, "--out", str(out))
    output, _ = again.communicate(timeout=400)
    assert again.returncode == 0, output
    assert first.stat().st_mtime_ns == written, "a finished run was run again"
    rows = pq.read_table(out / "results.parquet").to_pylist()
    assert sorted((row["cell"], row["seed"]) for row in rows) == [
        ("high", 0), ("high", 1), ("low", 0), ("low", 1),
    ]  # fmt: skip
    for row in rows:
        summary = json.loads(
            (out / f"seed={row['seed']}" / row["cell"] / "summary.json").read_text()
        )
        assert row["after"] == pytest.approx(summary["reward_after"]["total"])
        folder = out / f"seed={row['seed']}" / row["cell"]
        start, end = (
            [reply["log_ratio"] for reply in json.loads((folder / name).read_text())]
            for name in ("before.json", "after.json")
        )
        # Engine and reference agree on the start, to 1e-4 nats a token of at most 16.
        assert start == pytest.approx([0.0] * 8, abs=1.6e-3)
        assert max(map(abs, end)) > 0.01
        assert row["kl"] == pytest.approx(sum(end) / 8)
    # The last run took over engine, judge and reference of the one before; alone it is the same.
    last = load_config(out / "seed=1" / "high" / "config.yaml")
    alone = tmp_path / "alone.yaml"
    alone.write_text(to_yaml(last))
    own = [ATTUNE, "run", str(alone), f"cluster.run_dir={tmp_path / 'alone'}"]
    done = subprocess.run(own, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert replies(tmp_path / "alone") == replies(out / "seed=1" / "high")
    logs = sorted(out.glob("seed=*/*/logs/engine-0.log"))
    assert len(logs) == 4
    starts = ["ready in" in log.read_text() for log in logs]
    assert sum(starts) == 2, "an engine starts with the command, twice given, and with no run"
    markdown = (out / "results.md").read_text()
    assert "low" in markdown
    assert "high" in markdown
    assert "http" not in (out / "ablation.html").read_text().replace("http://www.w3.org", "")
