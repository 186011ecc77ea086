"""A weight sync of a mid-sized model: pause, transfer speed, and memcpy of the same bytes."""

import statistics
import time
from pathlib import Path
from typing import Any

import ray
import torch

from rl.world.model import write_model
from tests.integration.loop import start_loop, stop, tiny_run

ROUNDS = 8


def memcpy_mb_per_s(num_bytes: int) -> float:
    """One thread copying a buffer of that size, best of five."""
    source, target = (
        torch.ones(num_bytes, dtype=torch.uint8),
        torch.empty(num_bytes, dtype=torch.uint8),
    )
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        target.copy_(source)
        best = max(best, num_bytes / (time.perf_counter() - started) / 1e6)
    return best


def sync(folder: Path) -> dict[str, Any]:
    """Two engines take over a 25 M-parameter model, again and again."""
    write_model(folder / "model", hidden_size=512, num_layers=8)
    prompts = folder / "prompts.jsonl"
    prompts.write_text('{"prompt": "hello"}\n{"prompt": "where"}\n')
    config = tiny_run(folder / "model", prompts, folder / "run", "cluster.rollout.num_engines=2")
    learner, engines = start_loop(config, [[7, 8, 9]])
    num_bytes = sum(file.stat().st_size for file in (folder / "model").glob("*.safetensors"))
    rounds = [ray.get(learner.publish.remote(v), timeout=120) for v in range(ROUNDS + 1)][1:]
    passes = [ray.get(learner.time_apart.remote(), timeout=120) for _ in range(ROUNDS)]
    stop(learner, engines)
    transfer = statistics.median(r["sync/transfer_s"] for r in rounds)
    copied = memcpy_mb_per_s(num_bytes)

    def ms(of: list[dict[str, float]], name: str) -> float:
        return round(1e3 * statistics.median(row[name] for row in of), 1)

    return {
        "model_mb": round(num_bytes / 1e6, 1),
        "engines": 2,
        "pause_ms_median": ms(rounds, "sync/pause_s"),
        "pause_ms_max": round(1e3 * max(r["sync/pause_s"] for r in rounds), 1),
        **{f"{part}_ms": ms(rounds, f"sync/{part}_s") for part in ("begin", "receive", "install")},
        "gather_ms": ms(passes, "gather"),
        "fingerprint_ms": ms(passes, "fingerprint"),
        "sync_ms_median": ms(rounds, "time/sync"),
        "transfer_mb_per_s": round(num_bytes / transfer / 1e6),
        "memcpy_mb_per_s": round(copied),
        "transfer_over_memcpy": round(num_bytes / transfer / 1e6 / copied, 3),
        "probe_gap_max": max(r["probe/gap"] for r in rounds),
        "rounds": ROUNDS,
    }
