"""Run directories made from formulas: input for the tests of whatever reads runs."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

PHASES = {"sample": 2.1, "score": 0.6, "train": 1.4, "sync": 0.2, "idle": 0.3}
PARTS = ("answers", "true", "polite", "length", "fresh")


def online_row(step, num_steps, random):
    """Metrics of one step of a run whose true reward goes from 0.41 to 0.73."""
    share = (step - 1) / (num_steps - 1)
    rise = 0.32 * (1 - math.exp(-4 * share)) / (1 - math.exp(-4))
    row = {
        "step": step,
        "policy_version": step,
        "time_s": 4.6 * step,
        "reward/gold/mean": 0.41 + rise + (random.normal(scale=0.012) if 1 < step < 50 else 0),
        "reward/total/mean": -0.6 + 5 * rise + random.normal(scale=0.08),
        "reward/total/std": 0.8,
        "kl/ref_k1": 5.1 * share,
        "kl/ref_k3": 5.4 * share + abs(random.normal(scale=0.1)),
        "kl/coef": 0.03,
        "entropy": 2.2 - 1.1 * share + random.normal(scale=0.03),
        "length/mean": 21 + 5 * share + (random.normal(scale=0.5) if 1 < step < 50 else 0),
        "length/max": 48 + int(random.integers(0, 16)),
        "eos_rate": 0.93 + 0.05 * share,
        "zero_std_groups": int(random.integers(0, 4)),
        "loss/policy": random.normal(scale=0.3),
        "grad_norm": 0.9 + abs(random.normal(scale=0.3)),
        "learning_rate": 5e-4,
        "ratio/mean": 1 + random.normal(scale=1e-4),
        "correction/mean": 1.0,
        "staleness/mean": 0.0,
        "staleness/max": 0,
        "probe/gap": 2e-6 + abs(random.normal(scale=1e-6)),
        "sync/pause_s": 0.12 + abs(random.normal(scale=0.02)),
        "tokens_per_s": 980 + random.normal(scale=40),
    }
    row["reward/rm/mean"] = row["reward/total/mean"]
    row["reward/total/p10"] = row["reward/total/mean"] - 1.0
    row["reward/total/p90"] = row["reward/total/mean"] + 0.9
    row |= {
        f"reward/gold/{part}/mean": min(1, 0.3 + 0.12 * i + rise * (1 + 0.2 * i))
        for i, part in enumerate(PARTS)
    }
    warm_up = 6 if step == 1 else 1
    row |= {f"time/{k}": v * warm_up + abs(random.normal(scale=0.1)) for k, v in PHASES.items()}
    return row


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_experience(run_dir, step, rows):
    """One step's Parquet file with the columns that a report reads."""
    folder = run_dir / "experience" / f"step={step}"
    folder.mkdir(parents=True)
    kind = pa.schema(
        [
            ("step", pa.int64()),
            ("group_id", pa.int64()),
            ("sample", pa.int64()),
            ("prompt_row", pa.int64()),
            ("prompt", pa.string()),
            ("reply", pa.string()),
            ("score", pa.float64()),
            ("rewards", pa.map_(pa.string(), pa.float64())),
        ]
    )
    table = pa.Table.from_pylist([{"step": step, "group_id": 0, **row} for row in rows], kind)
    pq.write_table(table, folder / "part-0.parquet")


def config_of(method, num_steps, rewards=None):
    return {
        "model": {"path": "models/concierge"},
        "data": {"train": "world/prompts.jsonl", "prompts_per_step": 32, "samples_per_prompt": 4},
        "feedback": {"rewards": rewards or {}},
        "algorithm": {
            "name": method,
            "num_steps": num_steps,
            "optimizer": {"learning_rate": 5e-4},
            "kl": {"coef": 0.03},
            "max_staleness": 1,
        },
        "cluster": {"run_dir": "runs/demo", "device": "cpu", "rollout": {"num_engines": 2}},
    }


REWARDS = {"rm": {"kind": "model", "weight": 1.0}, "gold": {"kind": "gold", "weight": 0.0}}


def write_online(run_dir, num_steps=60):
    """A finished RLOO run with evaluation-free metrics, a summary and stored samples."""
    run_dir.mkdir(parents=True)
    random = np.random.default_rng(0)
    rows = [online_row(step, num_steps, random) for step in range(1, num_steps + 1)]
    write_jsonl(run_dir / "metrics.jsonl", rows)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config_of("rloo", num_steps, REWARDS)))
    samples = [
        {
            "prompt": "Where can I eat near the harbour tonight?",
            "before": "the harbour is the harbour near the old town and the harbour is open",
            "after": "Good evening! The Blue Anchor is by the harbour and opens until eleven.",
            "rewards_before": {"gold": 0.21, "gold/polite": 0.0, "rm": -0.8},
            "rewards_after": {"gold": 0.86, "gold/polite": 1.0, "rm": 1.9},
        },
        {
            "prompt": "<script>alert('prompt')</script>",
            "before": "",
            "after": "I am sorry & cannot help with <b>that</b>.",
            "rewards_before": {"gold": 0.4},
            "rewards_after": {"gold": 0.35},
        },
    ]
    summary = {"restarts": 0, "samples": samples, "versions": {"torch": "2.13.0", "ray": "2.60.0"}}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    return run_dir


def write_offline(run_dir, method):
    """A finished SFT (loss 3.9 to 1.2) or reward-model run (accuracy 50 % to 74 %)."""
    run_dir.mkdir(parents=True)
    rows = []
    for step in range(1, 101):
        fall = math.exp(-step / 20)
        row = {"step": step, "time_s": 0.2 * step, "grad_norm": 1 + fall, "learning_rate": 1e-3}
        row |= {"time/train": 0.15, "time/idle": 0.02}
        if method == "sft":
            row["loss/nll"] = 1.2 + 2.7 * fall
        else:
            row |= {"loss/bradley_terry": 0.5 + 0.19 * fall, "accuracy": 0.75 - 0.25 * fall}
        if step % 20 == 0 or step == 1:
            row["validation/loss"] = 1.25 + 2.65 * fall if method == "sft" else 0.52 + 0.17 * fall
            row["validation/accuracy"] = 0.74 - 0.24 * fall
            if method == "sft":
                del row["validation/accuracy"]
        rows.append(row)
    write_jsonl(run_dir / "metrics.jsonl", rows)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config_of(method, 100)))
    (run_dir / "summary.json").write_text(json.dumps({"restarts": 0}))
    return run_dir


def small_run(run_dir, columns, *, method="rloo", num_steps=None, rewards=None, summary=None):
    """A run whose metrics are given column by column."""
    run_dir.mkdir(exist_ok=True)
    count = len(next(iter(columns.values())))
    rows = [{"step": i + 1} | {k: v[i] for k, v in columns.items()} for i in range(count)]
    write_jsonl(run_dir / "metrics.jsonl", rows)
    config = config_of(method, num_steps or count, rewards)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    if summary is not None:
        (run_dir / "summary.json").write_text(json.dumps(summary))
    return run_dir
