"""The set of rollout engines: starting them, and spreading prompts over them."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from actors.rollout import EngineSpec, RolloutEngine, SampleRequest
from cluster.runtime import log_to_file, namespace, role_env
from configs.schema import RunConfig
from rl.types import Rollout


class LoggedEngine(RolloutEngine):
    """A rollout engine whose log goes to the run folder."""

    def __init__(self, spec: EngineSpec, run_dir: str) -> None:
        log_to_file(run_dir, spec.name)
        super().__init__(spec)

    async def take_up(self, spec: EngineSpec, run_dir: str) -> None:
        """Serve another run, which brings its weights; what it is built of stays the same."""
        await self.start()
        log_to_file(run_dir, spec.name)
        await self.leave_transfer()
        self.spec = spec


@dataclass(frozen=True, kw_only=True)
class EngineHandle:
    """An engine actor and what others must know of it."""

    name: str
    actor: Any
    num_workers: int
    """Tensor-parallel workers, each a member of the transfer group."""


def transport_of(config: RunConfig) -> str:
    """What `auto` stands for: gloo on CPU, ipc where learner and engine share a GPU, else nccl."""
    cluster = config.cluster
    if cluster.sync.transport != "auto":
        return cluster.sync.transport
    if cluster.device == "cpu":
        return "gloo"
    return "ipc" if 0 < cluster.learner.gpus_per_worker < 1 else "nccl"


def engine_spec(config: RunConfig, name: str, model_path: str) -> EngineSpec:
    """What an engine of the run needs to start."""
    return EngineSpec(
        name=name,
        model_path=model_path,
        dtype=config.model.dtype,
        max_length=config.model.max_length,
        sampling=config.data.sampling,
        placement=config.cluster.rollout,
        transport=transport_of(config),
        device=config.cluster.device,
        seed=config.data.seed,
    )


def start_engine(config: RunConfig, name: str, model_path: str) -> EngineHandle:
    """Create one engine actor, which loads `model_path` with the run's settings; does not wait."""
    spec, placement = engine_spec(config, name, model_path), config.cluster.rollout
    engine_class: Any = ray.remote(LoggedEngine)
    actor = engine_class.options(
        name=name,
        namespace=namespace(config),
        num_cpus=placement.cpus_per_engine,
        num_gpus=placement.gpus_per_engine,
        runtime_env=role_env(placement.cpus_per_engine, config.cluster.device),
    ).remote(spec, config.cluster.run_dir)
    actor.start.remote()
    return EngineHandle(name=name, actor=actor, num_workers=placement.tensor_parallel_size)


def start_engines(config: RunConfig) -> list[EngineHandle]:
    """Create all engines of a run and let them load side by side; does not wait."""
    count = config.cluster.rollout.num_engines
    return [start_engine(config, f"engine-{index}", config.model.path) for index in range(count)]


class Fleet:
    """Sends prompts to engines and waits for whole groups, never without a deadline."""

    def __init__(self, engines: Sequence[EngineHandle], deadline_s: float) -> None:
        self.engines = list(engines)
        self.deadline_s = deadline_s
        self._load = dict.fromkeys((engine.name for engine in engines), 0)

    async def generate(self, requests: Sequence[SampleRequest]) -> list[list[Rollout]]:
        """One list of rollouts per request, in order; from the engine with the least to do."""
        engine = min(self.engines, key=lambda engine: self._load[engine.name])
        self._load[engine.name] += len(requests)
        try:
            return await asyncio.wait_for(
                engine.actor.generate.remote(list(requests)), self.deadline_s
            )
        except TimeoutError as error:
            raise RuntimeError(
                f"{engine.name} gave no reply to {len(requests)} prompts within "
                f"{self.deadline_s:.0f} s (phase: sample); see logs/{engine.name}.log, or raise "
                "cluster.rollout.generate_deadline_s"
            ) from error
        finally:
            self._load[engine.name] -= len(requests)
