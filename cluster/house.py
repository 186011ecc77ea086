"""The processes of a run, which the next run of an ablation may take over.

    run ─▶ House ─▶ engines, collector with its judges ─▶ next run

Starting an engine takes seconds on a CPU and minutes for a large model, and its weights come from
the learner anyway. So what a run has started stays, where the next one would start the same.
Of a run that failed nothing is kept.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from actors.rollout import EngineSpec
from cluster.collector import Collector
from cluster.engines import EngineHandle, create_engine, engine_names, engine_spec
from cluster.references import latest_reference
from cluster.runtime import namespace
from cluster.seats import Seat
from cluster.supervisor import Supervisor
from configs.schema import RunConfig
from rl.data.stored import Item

logger = logging.getLogger(__name__)

REFERENCE = "engine-reference"
"""Who samples from the reference, where a method asks for that."""
TAKE_UP_S = 30.0
"""What a living process answers within."""
READ_AT_START = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "tokenizer.model", "special_tokens_map.json", "chat_template.jinja",
)  # fmt: skip
"""What an engine takes from a model folder beside weights."""


class House:
    """Engines and a collector for one run after the other.

    >>> # with house.open(config, items) as supervisor: ...
    >>> # house.close()
    """

    def __init__(self) -> None:
        self._engines: dict[str, tuple[str, EngineHandle]] = {}
        """Name -> what it was built of, and the engine."""
        self._collector: Any = None
        self._is_stopped = False

    def stop(self) -> None:
        """Stop the run that is under way in another thread, as Ctrl-C stops one in the main one."""
        self._is_stopped = True

    def failure(self) -> BaseException | None:
        """What makes going on with a run useless."""
        return KeyboardInterrupt() if self._is_stopped else None

    @contextmanager
    def open(self, config: RunConfig, items: list[Item]) -> Iterator[Supervisor]:
        """The run's engines and collector, watched; what is started loads side by side."""
        paths = dict.fromkeys(engine_names(config.cluster.rollout.num_engines), config.model.path)
        if config.data.source == "policy+reference":
            paths[REFERENCE] = latest_reference(config)
        for name in [name for name in self._engines if name not in paths]:
            ray.kill(self._engines.pop(name)[1].actor)
        seats = [
            Seat(
                name=name,
                path=path,
                engine=self._engine(config, name, path),
                is_synced=name != REFERENCE,
            )
            for name, path in paths.items()
        ]
        built_of = {name: self._engines[name][0] for name in paths}
        if self._collector is None:
            self._collector = _start_collector(config)
        with Supervisor(config, items, self._collector, seats) as supervisor:
            try:
                yield supervisor
            finally:
                supervisor.stop()
                self._keep(supervisor, built_of)

    def _keep(self, supervisor: Supervisor, built_of: dict[str, str]) -> None:
        """Remember who fills the seats now; an elastic fleet's later ones end with their run."""
        self._engines = {}
        for engine in supervisor.engines():
            if engine.name in built_of:
                self._engines[engine.name] = (built_of[engine.name], engine)
            elif ray.is_initialized():
                ray.kill(engine.actor)

    def _engine(self, config: RunConfig, name: str, path: str) -> EngineHandle:
        spec = engine_spec(config, name, path)
        built_of = _built_of(spec, is_synced=name != REFERENCE)
        before, engine = self._engines.pop(name, ("", None))
        if engine is not None and not (before == built_of and self._taken_up(config, spec, engine)):
            ray.kill(engine.actor)
            engine = None
        engine = engine or create_engine(config, name, path)
        self._engines[name] = (built_of, engine)
        return engine

    def _taken_up(self, config: RunConfig, spec: EngineSpec, engine: EngineHandle) -> bool:
        """Whether the engine serves the run; one that died or hangs is no loss."""
        try:
            ray.get(engine.actor.take_up.remote(spec, config.cluster.run_dir), timeout=TAKE_UP_S)
        except Exception:
            logger.warning("%s did not take up another run", engine.name, exc_info=True)
            return False
        return True

    def close(self) -> None:
        """End every process."""
        actors = [engine.actor for _, engine in self._engines.values()]
        actors += [self._collector] if self._collector is not None else []
        # A Ray that was shut down took its actors along, and a call would start another one.
        for actor in actors * ray.is_initialized():
            ray.kill(actor)
        self._engines, self._collector = {}, None


def _start_collector(config: RunConfig) -> Any:
    collector_class: Any = ray.remote(Collector)
    return collector_class.options(
        name="collector",
        namespace=namespace(config),
        num_cpus=0,
        # Beside the learner: nodes of engines come and go.
        label_selector=config.cluster.learner.labels or None,
        # Ray starts it anew wherever there is room; the supervisor then sets it up again.
        max_restarts=-1,
    ).remote()


def _built_of(spec: EngineSpec, *, is_synced: bool) -> str:
    """What an engine cannot change: all but its seed, its sampling and, where synced, weights."""
    folder = Path(spec.model_path)
    files = [folder / name for name in READ_AT_START]
    read = b"".join(file.read_bytes() for file in files if file.exists())
    parts = (
        spec.name, spec.dtype, spec.max_length, spec.placement, spec.transport, spec.device,
        spec.with_metrics,
        hashlib.sha256(read).hexdigest(), None if is_synced else spec.model_path,
    )  # fmt: skip
    return repr(parts)
