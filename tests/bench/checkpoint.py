"""What a checkpoint costs the step it belongs to: uploaded beside training, and waited for."""

import statistics
import time
from pathlib import Path
from typing import Any

from configs.load import load_config
from configs.schema import RunConfig
from rl.world.model import write_model
from tests.integration.processes import Ranks

STEPS, INTERVAL = 24, 4
ROWS, TOKENS = 4, 64


def checkpoint(folder: Path) -> dict[str, Any]:
    """Steps of a 25 M-parameter model in float32 with AdamW, a checkpoint after every fourth."""
    write_model(folder / "model", hidden_size=512, num_layers=8)
    config = load_config(
        None,
        [
            "algorithm.name=sft", f"model.path={folder}/model", "model.max_length=128",
            "data.train=unused", f"cluster.run_dir={folder}/run",
        ],
    )  # fmt: skip
    with Ranks(1) as ranks:
        (plain,) = ranks.run(steps, config, folder / "none", None, deadline_s=600)
        (waited,) = ranks.run(steps, config, folder / "waited", False, deadline_s=600)
        (beside,) = ranks.run(steps, config, folder / "beside", True, deadline_s=600)
    return {
        "step_ms": _ms(plain["others"]),
        "copy_ms": _ms(beside["copies"]),
        "synchronous_ms": _ms(waited["checkpoints"]),
        "asynchronous_ms": _ms(beside["checkpoints"]),
        "next_step_ms": _ms(beside["next"]),
        "synchronous_s_per_20_steps": _lost(waited, plain),
        "asynchronous_s_per_20_steps": _lost(beside, plain),
        "checkpoint_mb": round(beside["bytes"] / 1e6, 1),
        "checkpoints": STEPS // INTERVAL,
    }


def _ms(seconds: list[float]) -> float:
    return round(1e3 * statistics.median(seconds), 1)


def _lost(with_checkpoints: dict[str, Any], without: dict[str, Any]) -> float:
    """Seconds longer than without, in 20 steps with one checkpoint."""
    lost = (with_checkpoints["whole"] - without["whole"]) / (STEPS // INTERVAL)
    return round(lost, 3)


def steps(config: RunConfig, folder: Path, asynchronous: bool | None) -> dict[str, Any]:
    """Seconds of steps, of checkpoints in them, and of the step after each; None saves nothing."""
    import torch

    from actors.learner import Learner
    from actors.supervised_update import objective
    from cluster.checkpoints.saver import Saver
    from cluster.checkpoints.store import Store
    from rl.types import Demonstration, Prompt

    prompt = Prompt(row=0, text="", tokens=tuple(range(4, 4 + TOKENS // 2)), extra={})
    rows = [Demonstration(prompt=prompt, text="", tokens=prompt.tokens) for _ in range(ROWS)]
    torch.manual_seed(0)
    learner = Learner(config, pad_token_id=0)
    task = objective(learner)
    folder.mkdir()
    saver = Saver(
        Store(folder / "store"), folder / "scratch", rank=0, world_size=1, attempt=1, keep=1,
        run_dir=str(folder), deadline_s=600, asynchronous=bool(asynchronous),
    )  # fmt: skip
    task.train(rows)
    found: dict[str, Any] = {"checkpoints": [], "copies": [], "next": [], "others": []}
    began = time.perf_counter()
    for step in range(1, STEPS + 1):
        started = time.perf_counter()
        task.train(rows)
        trained = time.perf_counter()
        if asynchronous is not None and step % INTERVAL == 0:
            found["copies"].append(saver.copy(step, learner.save))
            saver.upload()
            found["checkpoints"].append(time.perf_counter() - trained)
        kind = "next" if asynchronous is not None and step % INTERVAL == 1 else "others"
        found[kind].append(trained - started)
    found["whole"] = time.perf_counter() - began
    saver.wait()
    files = (folder / "store").rglob("*")
    found["bytes"] = sum(file.stat().st_size for file in files if file.is_file())
    saver.close()
    return found
