"""Every row of the method table takes three real steps, and lowers its own loss on a fixed batch.

One Ray cluster, one vLLM engine, one learner process and one reference serve all rows; sampling,
scoring, pairing, updates and weight syncs are those of a run.
"""

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.engines import EngineHandle, start_engine, start_engines
from cluster.fleet import Fleet
from cluster.inputs import read_rows
from cluster.judges import Judges
from cluster.references import has_reference, reference_moves, sync_interval
from cluster.scoring import ScoringGroup, reference_group, reward_groups
from cluster.walk import Walk
from configs.load import load_config
from configs.methods import METHODS
from configs.schema import RunConfig
from rl.folders import load_tokenizer
from rl.types import Experience
from rl.world.model import write_model
from tests.integration.method_steps import start_method_learner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 3
JUDGE = "feedback.rewards.judge={kind: function, path: '{judge}'}"
SAMPLED = [name for name in METHODS if name not in ("sft", "reward_model")]
"""SFT and the reward model have a learner job of their own: see `test_supervised.py`."""


ONLINE = [
    "data.source=policy+reference",
    "data.samples_per_prompt=2",
    "feedback.rewards.label=null",
    "algorithm.loss.label_mode=continuous",
]
SECOND = "feedback.rewards.brief={kind: function, path: '{judge}:brief'}"
VARIANTS: dict[str, list[str]] = {
    # Point-wise losses on scored fresh replies, with what the reference's replies say of c(x).
    "pointwise_dpo, c estimated": [*ONLINE, "algorithm.loss.c=estimated"],
    "pointwise_dpo, centred": [*ONLINE, "algorithm.loss.centred=true"],
    # Several rewards, each way of putting them together that is not a sum.
    "rloo, minimum": [SECOND, "feedback.combine=minimum"],
    "rloo, group_minimum": [SECOND, "feedback.combine=group_minimum"],
    "rloo, lagrangian": [
        SECOND, "feedback.combine=lagrangian", "feedback.bounds={brief: -0.5}",
        "feedback.multipliers={brief: 0.7}",
    ],
    "rloo, one-shot lagrangian": [
        SECOND, "feedback.combine=lagrangian", "feedback.bounds={brief: -0.92}",
        "feedback.one_shot=true", "algorithm.kl.coef=0.1",
    ],
}  # fmt: skip
"""Method and what is told apart by it, with what a user adds to the row."""


def write_rows(folder: Path) -> dict[str, Path]:
    """Pairs and ratings of the built-in world."""
    from rl.world.generate import Sizes, write_world

    tiny = Sizes(**(dict.fromkeys(Sizes.__dataclass_fields__, 8) | {"pairs": 64, "ratings": 64}))
    return write_world(folder, 0, tiny)


def settings_of(name: str, paths: dict[str, Path], model: Path, folder: Path) -> list[str]:
    """What a user of this row would give, at a size for tests."""
    method = METHODS[name]
    data = method.data or {}
    stored = "stored" in data.get("source", "policy")
    kind = "ratings" if method.arities == ("point",) else "pairs" if stored else "prompts"
    judge = folder.parent / "judge.py"
    judge.write_text(
        "def reward(prompts, replies, rows):\n"
        "    return [len(set(r.split())) / 16 - 0.02 * len(r) / 80 for r in replies]\n"
        "def brief(prompts, replies, rows):\n"
        "    return [-len(r) / 80 for r in replies]\n"
    )
    overrides = [
        f"algorithm.name={name}", f"algorithm.num_steps={STEPS}", f"model.path={model}",
        "model.max_length=96", f"data.train={paths[kind]}", "data.prompts_per_step=8",
        "data.sampling.max_new_tokens=16", "algorithm.optimizer.learning_rate=5e-4",
        f"cluster.run_dir={folder}", "cluster.dashboard=false",
        "cluster.rollout.max_num_seqs=64", "cluster.rollout.kv_cache_gib=0.05",
        "cluster.learner.persistence_threshold=0",
    ]  # fmt: skip
    if not method.feedback:
        overrides += [
            "feedback.rewards.judge.kind=function",
            f"feedback.rewards.judge.path={judge}",
        ]
    if method.data is None:
        overrides += ["data.samples_per_prompt=4"]
    if (method.model or {}).get("reference_update") == "reset":
        overrides += ["algorithm.iteration_steps=1", "cluster.checkpoint.interval=1"]
    if (method.model or {}).get("reference_update") == "ema":
        overrides += ["model.reference_interval=1"]
    if name == "dapo":  # untrained policies hardly ever end a reply
        overrides += ["algorithm.mask_truncated=false"]
    if name == "mrpo":
        overrides += [f"model.extra_references=[{folder.parent}/other]"]
    if name == "ulma":
        overrides += ["data.demo_score=0.6"]
    if "alpha" in method.algorithm.get("loss", {}):
        overrides += ["algorithm.loss.alpha=0.01"]
    return overrides


class House:
    """The processes that all rows share, and the loop their futures belong to."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.paths = write_rows(folder / "world")
        write_model(folder / "other", seed=7)
        self.runner = asyncio.Runner()
        config = self.config("rloo", folder / "first")
        self.engines = start_engines(config)
        self.learner = start_method_learner(config, self.engines)
        self.reference = self.run(self._group(lambda: reference_group(config, str(model))))
        self.reference_engine: EngineHandle | None = None

    async def _group(self, make: Callable[[], ScoringGroup]) -> ScoringGroup:
        return make()

    def config(self, name: str, folder: Path, *more: str) -> RunConfig:
        given = settings_of(name, self.paths, self.model, folder)
        if "feedback.rewards.label=null" in more:
            given += [f"data.train={self.paths['prompts']}", JUDGE]
        judge = str(folder.parent / "judge.py")
        told = [override.replace("{judge}", judge) for override in [*given, *more]]
        return load_config(None, told)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def engine_of_reference(self, config: RunConfig) -> EngineHandle | None:
        """Started for the first row that asks."""
        if config.data.source != "policy+reference":
            return None
        if self.reference_engine is None:
            self.reference_engine = start_engine(config, "engine-reference", str(self.model))
            ray.get(self.reference_engine.actor.start.remote(), timeout=240)
        return self.reference_engine

    def close(self) -> None:
        engines = [*self.engines, *([self.reference_engine] if self.reference_engine else [])]
        for actor in [self.learner, *(engine.actor for engine in engines)]:
            ray.kill(actor)
        self.reference.end()
        self.runner.close()


@pytest.fixture(scope="module")
def house(ray_cluster: None, world_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    built = House(world_model, tmp_path_factory.mktemp("methods"))
    yield built
    built.close()


async def steps(house: House, config: RunConfig) -> tuple[list[dict], list[Experience]]:
    """Three steps of the loop that a run makes; metrics, and the last batch."""
    rewards = reward_groups(config)
    reference = house.reference if has_reference(config) else None
    moves = config.model.reference_update in ("reset", "ema")
    if moves:  # it will be another one: leave the shared reference where it is
        reference = reference_group(config, config.model.path)
    extra = tuple(reference_group(config, path) for path in config.model.extra_references)
    tokenizer = load_tokenizer(config.model.path)
    other = house.engine_of_reference(config)
    walk = Walk(
        config,
        read_rows(config, config.data.train, tokenizer),
        Judges(rewards=rewards, reference=reference, extra_references=extra),
        Fleet(config, house.engines),
        Fleet(config, [other]) if other else None,
    )
    found = []
    try:
        await walk.begin(0)
        experiences: list[Experience] = []
        for step in range(1, STEPS + 1):
            refs, _, _ = await walk.take(step, 0, 1)
            experiences = await asyncio.gather(*refs)
            metrics, num_rows = await house.learner.update.remote(step, experiences)
            assert num_rows == sum(len(group.rollouts) for group in experiences)
            if step % sync_interval(config) == 0:
                metrics |= await house.learner.publish.remote(step)
            if reference_moves(config, step):
                folder = str(Path(config.cluster.run_dir) / "references" / f"step={step:06d}")
                await house.learner.export.remote(folder)
                await walk.move_reference(folder)
            await walk.advance(step)
            found.append(metrics)
        return found, experiences
    finally:
        own = [reference] if moves and reference else []
        for group in [*rewards.values(), *own, *extra]:
            group.end()


@pytest.mark.parametrize("name", [*SAMPLED, *VARIANTS])
def test_three_steps_and_a_lower_loss_on_a_fixed_batch(house: House, name: str) -> None:
    method = name.partition(",")[0]
    config = house.config(method, house.folder / name.replace(", ", "-"), *VARIANTS.get(name, ()))
    assert ray.get(house.learner.take_up.remote(config), timeout=240) <= 1e-4
    found, experiences = house.run(steps(house, config))
    assert len(found) == STEPS
    for metrics in found:
        wrong = {key: value for key, value in metrics.items() if not math.isfinite(value)}
        assert not wrong, json.dumps(wrong)
        assert metrics["grad_norm"] > 0
        assert metrics.get("probe/gap", 0) <= 1e-4
    losses = ray.get(house.learner.losses_on.remote(experiences), timeout=240)
    assert min(losses[1:]) < losses[0], losses
    print(f"MEASURED {name}: {losses[0]:.5g} -> {losses[-1]:.5g}")
