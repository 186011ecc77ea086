"""Share of a learner step that is neither sampling, scoring, training nor sync."""

import json
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from configs.load import to_yaml
from rl.world.model import write_model
from rl.world.replies import draw_request, write_prompt
from tests.integration.loop import tiny_run

NUM_STEPS = 30


def overhead(folder: Path) -> dict[str, Any]:
    """A run of the public command at the demo's batch size."""
    write_model(folder / "model")
    rng = random.Random(0)
    rows = [{"prompt": write_prompt(rng, *draw_request(rng))} for _ in range(200)]
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tiny_run(
        folder / "model", prompts, folder / "run",
        "data.prompts_per_step=32", "data.sampling.max_new_tokens=32",
        f"algorithm.num_steps={NUM_STEPS}", "cluster.rollout.max_num_seqs=128",
        "cluster.rollout.cpus_per_engine=2", "cluster.learner.cpus_per_worker=2",
    )  # fmt: skip
    file = folder / "run.yaml"
    file.write_text(to_yaml(config))
    attune = str(Path(sys.executable).with_name("attune"))
    subprocess.run([attune, "run", str(file)], check=True, capture_output=True, timeout=600)
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines][1:]  # the first step opens files and compiles
    share = [step["time/idle"] / step["time/step"] for step in steps]
    phases = ("sample", "score", "train", "sync", "idle", "step")
    return {
        "other_share_median": round(statistics.median(share), 4),
        "other_share_total": round(
            sum(step["time/idle"] for step in steps) / sum(step["time/step"] for step in steps), 4
        ),
        "other_share_max": round(max(share), 4),
        "median_s": {
            p: round(statistics.median(step[f"time/{p}"] for step in steps), 4) for p in phases
        },
        "steps": len(steps),
    }
