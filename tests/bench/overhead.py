"""Share of a learner step that is neither sampling, scoring, training nor sync."""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from configs.load import to_yaml
from tests.bench.switched import run_of_demo_size

NUM_STEPS = 30


def overhead(folder: Path) -> dict[str, Any]:
    """A run of the public command at the demo's batch size."""
    config = run_of_demo_size(folder, NUM_STEPS)
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
