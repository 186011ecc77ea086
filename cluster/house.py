"""The processes of a run, which the next run of an ablation may take over.

    run ─▶ House ─▶ engines, collector with its judges ─▶ next run

Starting an engine takes seconds on a CPU and minutes for a large model, and its weights come from
the learner anyway. So what a run has started stays, where the next one would start the same.
Of a run that failed nothing is kept.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any

import ray

from actors.rollout import EngineSpec
from cluster.collector import Collector
from cluster.fleet import EngineHandle, engine_spec, start_engine
from cluster.references import latest_reference
from cluster.runtime import namespace
from configs.schema import RunConfig
from rl.data.stored import Item

logger = logging.getLogger(__name__)

TAKE_UP_S = 30.0
"""What a living process answers within."""
READ_AT_START = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "tokenizer.model", "special_tokens_map.json", "chat_template.jinja",
)  # fmt: skip
"""What an engine takes from a model folder beside weights."""


class House:
    """Engines and a collector for one run after the other.

    >>> # engines, collector = house.open(config, items); ...; house.close()
    """

    def __init__(self) -> None:
        self._engines: dict[str, tuple[str, EngineHandle]] = {}
        """Name -> what it was built of, and the engine."""
        self._collector: Any = None

    def open(self, config: RunConfig, items: list[Item]) -> tuple[list[EngineHandle], Any]:
        """The run's engines and its collector; what is started loads side by side."""
        paths = {
            f"engine-{index}": config.model.path
            for index in range(config.cluster.rollout.num_engines)
        }
        if config.data.source == "policy+reference":
            paths["engine-reference"] = latest_reference(config)
        for name in [name for name in self._engines if name not in paths]:
            ray.kill(self._engines.pop(name)[1].actor)
        found = {name: self._engine(config, name, path) for name, path in paths.items()}
        reference = found.pop("engine-reference", None)
        engines = list(found.values())
        return engines, self._opened(config, engines, items, reference)

    def _engine(self, config: RunConfig, name: str, path: str) -> EngineHandle:
        spec = engine_spec(config, name, path)
        built_of = _built_of(spec, is_synced=name != "engine-reference")
        before, engine = self._engines.pop(name, ("", None))
        if engine is not None and not (before == built_of and self._taken_up(config, spec, engine)):
            ray.kill(engine.actor)
            engine = None
        engine = engine or start_engine(config, name, path)
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

    def _opened(
        self,
        config: RunConfig,
        engines: list[EngineHandle],
        items: list[Item],
        reference: EngineHandle | None,
    ) -> Any:
        if self._collector is not None:
            call = self._collector.take_up.remote(config, engines, items, reference)
            ray.get(call, timeout=TAKE_UP_S)
            return self._collector
        collector_class: Any = ray.remote(Collector)
        self._collector = collector_class.options(
            name="collector", namespace=namespace(config), num_cpus=0
        ).remote(config, engines, items, reference)
        return self._collector

    def close(self) -> None:
        """End every process."""
        actors = [engine.actor for _, engine in self._engines.values()]
        actors += [self._collector] if self._collector is not None else []
        # A Ray that was shut down took its actors along, and a call would start another one.
        for actor in actors * ray.is_initialized():
            ray.kill(actor)
        self._engines, self._collector = {}, None


def _built_of(spec: EngineSpec, *, is_synced: bool) -> str:
    """What an engine cannot change: all but its seed, its sampling and, where synced, weights."""
    folder = Path(spec.model_path)
    files = [folder / name for name in READ_AT_START]
    read = b"".join(file.read_bytes() for file in files if file.exists())
    parts = (
        spec.name, spec.dtype, spec.max_length, spec.placement, spec.transport, spec.device,
        hashlib.sha256(read).hexdigest(), None if is_synced else spec.model_path,
    )  # fmt: skip
    return repr(parts)
