"""Does the true reward rise? The demo with RLOO, then PPO from the same start, several seeds."""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

SEEDS = (0, 1, 2)
RECIPE = Path(__file__).parents[2] / "configs" / "demo" / "run.yaml"


def attune(*arguments: str) -> None:
    """Run the public command; its console output goes to stderr."""
    command = [str(Path(sys.executable).with_name("attune")), *arguments]
    subprocess.run(command, check=True, stdout=sys.stderr, timeout=1800)


def outcome(run_dir: Path) -> dict[str, float]:
    """Held-out gold before and after, KL and lengths, from the run's own summary."""
    summary = json.loads((run_dir / "summary.json").read_text())
    return {
        "gold_before": round(summary["reward_before"]["gold"], 4),
        "gold_after": round(summary["reward_after"]["gold"], 4),
        "kl_nats": round(summary["kl"], 2),
        "length_before": round(summary["length_before"], 1),
        "length_after": round(summary["length_after"], 1),
        "probe_gap_max": summary["probe_gap_max"],
        "wall_s": summary["wall_s"],
    }


def learning(folder: Path) -> dict[str, Any]:
    """Three seeds of world, model, data order and sampling; RLOO and PPO."""
    results: dict[str, list[dict[str, float]]] = {"rloo": [], "ppo": []}
    for seed in SEEDS:
        demo = folder / str(seed)
        attune("demo", "--out", str(demo), "--seed", str(seed))
        results["rloo"].append(outcome(demo / "run"))
        ppo = demo / "ppo"
        attune(
            "run", str(RECIPE), "algorithm.name=ppo",
            f"model.path={demo}/sft/policy", f"data.seed={seed}",
            f"data.train={demo}/world/prompts.parquet",
            f"data.validation={demo}/world/prompts_heldout.parquet",
            f"feedback.rewards.rm.path={demo}/reward_model/policy", f"cluster.run_dir={ppo}",
        )  # fmt: skip
        results["ppo"].append(outcome(ppo))
    gains = {
        name: [row["gold_after"] - row["gold_before"] for row in rows]
        for name, rows in results.items()
    }
    return {
        "seeds": len(SEEDS),
        **{f"{name}_gain_mean": round(statistics.mean(g), 4) for name, g in gains.items()},
        **{f"{name}_gain_min": round(min(g), 4) for name, g in gains.items()},
        **results,
    }
