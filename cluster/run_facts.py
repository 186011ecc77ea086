"""What is said of a run in a few words and numbers: its tiles, its settings."""

from typing import Any

from cluster.headline import Change, curve_change, display_name, reward_change, short
from cluster.run_record import RunRecord, finite


def tiles(record: RunRecord) -> list[tuple[str, str, str]]:
    """The few numbers worth seeing first."""
    found = []
    gold = [name for name in record.gold_names if "/" not in name]
    rewards = [(name, "True reward") for name in gold] + [("total", "Reward it learns from")]
    wanted = [(title, reward_change(record, name)) for name, title in rewards]
    wanted += [
        ("KL to the reference", curve_change(record, "kl/ref_k1")),
        ("Reply length", curve_change(record, "length/mean")),
        ("Validation loss", curve_change(record, "validation/loss")),
        ("Validation accuracy", curve_change(record, "validation/accuracy")),
    ]
    units = {"KL to the reference": "nats per reply", "Reply length": "tokens"}
    for title, change in wanted:
        if change is not None:
            found.append((title, arrow(change), units.get(title, "")))
    planned = f" of {record.num_steps}" if record.num_steps else ""
    found.append(("Learner steps", f"{len(record.rows)}{planned}", ""))
    elapsed = finite(record.series("time_s")[1])
    if elapsed:
        found.append(("Time", duration(elapsed[-1]), "on the clock"))
    return found


def arrow(change: Change) -> str:
    """`0.41 → 0.73`."""
    return f"{short(change.before)} → {short(change.after)}"


def duration(seconds: float) -> str:
    """A time for people: `80 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def settings(record: RunRecord) -> list[tuple[str, str]]:
    """The settings a reader asks for first, then the package versions."""
    data, cluster = record.section("data"), record.section("cluster")
    algorithm = record.section("algorithm")
    optimizer: dict[str, Any] = algorithm.get("optimizer") or {}
    kl: dict[str, Any] = algorithm.get("kl") or {}
    rewards = record.section("feedback").get("rewards") or {}
    online = record.method not in ("sft", "reward_model")
    wanted = {
        "Method": display_name(record),
        "Model": record.section("model").get("path"),
        "Data": data.get("train"),
        "Steps": record.num_steps,
        "Batch": data.get("prompts_per_step"),
        "Replies per prompt": data.get("samples_per_prompt") if online else None,
        "Rewards": ", ".join(f"{k} × {v.get('weight', 1.0):g}" for k, v in rewards.items()),
        "Learning rate": optimizer.get("learning_rate"),
        "KL coefficient": kl.get("coef") if online else None,
        "Staleness bound": algorithm.get("max_staleness") if online else None,
        "Seed": data.get("seed"),
        "Device": cluster.get("device"),
        "Learner ranks": (cluster.get("learner") or {}).get("num_workers"),
        "Engines": (cluster.get("rollout") or {}).get("num_engines") if online else None,
        "Restarts": record.summary.get("restarts"),
    }
    versions = record.summary.get("versions")
    wanted |= versions if isinstance(versions, dict) else {}
    return [(name, str(value)) for name, value in wanted.items() if value not in (None, "")]
