"""Rollout engines as actors: what one needs to start, and the handle by which others know it."""

from dataclasses import dataclass
from typing import Any

import ray

from actors.rollout import EngineSpec, RolloutEngine
from cluster.roles import Role
from cluster.runtime import namespace, role_env
from configs.schema import RunConfig


class LoggedEngine(RolloutEngine):
    """A rollout engine whose log goes to the run folder."""

    def __init__(self, spec: EngineSpec, run_dir: str) -> None:
        super().__init__(spec)
        self._join(run_dir)

    def _join(self, run_dir: str) -> None:
        self.role = Role(run_dir, self.spec.name, self.live_facts, with_children=True)
        self.role.enter("start")
        self.say = self.role.enter

    async def take_up(self, spec: EngineSpec, run_dir: str) -> None:
        """Serve another run, which brings its weights; what it is built of stays the same."""
        await self.start()
        self.role.leave()
        self.spec, self.attempt, self.num_tokens = spec, 0, 0
        self.told.clear()  # of the run before; vLLM's logger holds this very dictionary
        self._join(run_dir)
        await self.abandon()
        await self.leave_transfer()

    def node(self) -> str:
        """Id of the Ray node it lives on; answers once it has been placed."""
        return ray.get_runtime_context().get_node_id()


@dataclass(frozen=True, kw_only=True)
class EngineHandle:
    """An engine actor and what others must know of it."""

    name: str
    """Of the seat, such as `engine-0`; who replaces an engine takes its name over."""
    actor: Any
    num_workers: int
    """Tensor-parallel workers, each a member of the transfer group."""
    incarnation: int = 0
    """How often the seat has been filled before."""

    @property
    def key(self) -> str:
        """Of this engine and no other, also none that replaces it."""
        return key_of(self.name, self.incarnation)


def key_of(name: str, incarnation: int) -> str:
    """`engine-0`, then `engine-0#1` for who replaced it."""
    return f"{name}#{incarnation}" if incarnation else name


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
        with_metrics=config.cluster.metrics.enabled and config.cluster.metrics.engine_metrics,
    )


def create_engine(
    config: RunConfig, name: str, model_path: str, incarnation: int = 0
) -> EngineHandle:
    """Create one engine actor, which loads `model_path` once `start` is called; does not wait."""
    spec, placement = engine_spec(config, name, model_path), config.cluster.rollout
    engine_class: Any = ray.remote(LoggedEngine)
    actor = engine_class.options(
        name=key_of(name, incarnation),
        namespace=namespace(config),
        num_cpus=placement.cpus_per_engine,
        num_gpus=placement.gpus_per_engine,
        label_selector=placement.labels or None,
        runtime_env=role_env(placement.cpus_per_engine, config.cluster.device),
    ).remote(spec, config.cluster.run_dir)
    return EngineHandle(
        name=name,
        actor=actor,
        num_workers=placement.tensor_parallel_size,
        incarnation=incarnation,
    )


def start_engine(config: RunConfig, name: str, model_path: str) -> EngineHandle:
    """Create one engine and let it load; does not wait."""
    engine = create_engine(config, name, model_path)
    engine.actor.start.remote()
    return engine


def engine_names(count: int) -> list[str]:
    """Of the first `count` seats of a fleet."""
    return [f"engine-{index}" for index in range(count)]


def start_engines(config: RunConfig) -> list[EngineHandle]:
    """Create all engines of a run and let them load side by side; does not wait."""
    names = engine_names(config.cluster.rollout.num_engines)
    return [start_engine(config, name, config.model.path) for name in names]
