"""A placement for a run: ranks, engines, tensor-parallel degree, shared or separate GPUs.

Every candidate is a configuration of its own, judged by the same plan that judges the user's; of
those that fit the one with the shortest estimated step is proposed.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from configs.memory import ModelShape, engine_count, is_online, model_shape, sequences_per_step
from configs.plan import derive
from configs.schema import RunConfig
from configs.timing import StepTime, Throughput, step_time

SCORING_SHARE = 0.2
"""Of a GPU, for each judge beside an engine."""
DEGREES = (1, 2, 4, 8, 16)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What to set, and what it comes to."""

    kind: str
    """colocated: learner and engines share devices; split: each has its own."""
    learners: int
    """Ranks of the ZeRO-3 group."""
    engines: int
    tensor_parallel: int
    settings: tuple[str, ...]
    """Overrides that make the configuration so."""
    time: StepTime
    gpus: float


def propose(
    config: RunConfig,
    model_config: Mapping[str, Any],
    throughput: Throughput,
    *,
    gpus: int,
    one_gpu_gib: float | None,
    available_bytes: int | None,
    cores: int | None,
) -> Placement | None:
    """The quickest placement that fits, None where none does.

    `gpus` and `one_gpu_gib`: what there is; `available_bytes` and `cores`: of this host.
    """
    shape, best = model_shape(model_config), None
    for kind, changed, settings in _candidates(config, shape, gpus):
        plan = derive(changed, model_config, available_bytes, cores=cores, one_gpu_gib=one_gpu_gib)
        if not plan.fits or plan.gpus > gpus + 1e-6:
            continue
        time = step_time(changed, shape, throughput, cores)
        # Of equals the one with fewer processes, which comes first.
        if best is None or time.step < 0.98 * best.time.step:
            cluster = changed.cluster
            best = Placement(
                kind=kind,
                learners=cluster.learner.num_workers,
                engines=engine_count(changed) if is_online(changed) else 0,
                tensor_parallel=cluster.rollout.tensor_parallel_size,
                settings=settings,
                time=time,
                gpus=plan.gpus,
            )
    return best


def _candidates(
    config: RunConfig, shape: ModelShape, gpus: int
) -> Iterator[tuple[str, RunConfig, tuple[str, ...]]]:
    """Kind, configuration and the settings that lead to it; simplest first."""
    if config.cluster.device == "cpu":
        threads = config.cluster.learner.cpus_per_worker
        yield _changed(config, "colocated", 1, threads, 0, 1, 1, 0, 0)
        return
    sequences = sequences_per_step(config) // config.algorithm.num_minibatches
    learner_cpus = config.cluster.learner.cpus_per_worker
    for learners in range(1, gpus + 1):
        if learners > sequences:
            return
        if not is_online(config):
            yield _changed(config, "learner alone", learners, learner_cpus, 1, 1, 1, 0, 0)
            continue
        yield from _online(config, shape, gpus, learners, learner_cpus)


def _online(
    config: RunConfig, shape: ModelShape, gpus: int, learners: int, cpus: float
) -> Iterator[tuple[str, RunConfig, tuple[str, ...]]]:
    judges = _judges_on_gpus(config)
    for degree in DEGREES:
        if shape.heads % degree or (degree > 1 and shape.key_heads % degree):
            continue
        rest = gpus - learners
        share = 1 - SCORING_SHARE if degree == 1 else 1
        # Judges sit in the room that single-GPU engines leave, or on GPUs of their own.
        per_gpu = math.floor(1 / SCORING_SHARE)
        own = 0 if degree == 1 and judges <= rest else math.ceil(judges / per_gpu)
        engines = (rest - own) // degree
        if engines >= 1:
            gpu = share if degree == 1 and own == 0 else degree
            yield _changed(config, "split", learners, cpus, 1, engines, degree, gpu, SCORING_SHARE)
    # One GPU for all: weights go over by CUDA IPC, which a group of ranks does not use here.
    if learners == 1:
        score = round(0.2 / max(1, judges), 3)
        yield _changed(config, "colocated", 1, cpus, 0.4, 1, 1, 0.4, score)


def _judges_on_gpus(config: RunConfig) -> int:
    """Processes that score with a model: rewards and references, one worker each."""
    rewards = sum(
        r.kind not in ("gold", "function", "label") for r in config.feedback.rewards.values()
    )
    has_reference = config.model.reference_update != "none"
    return rewards + has_reference * (1 + len(config.model.extra_references))


def _changed(
    config: RunConfig,
    kind: str,
    learners: int,
    learner_cpus: float,
    learner_gpus: float,
    engines: int,
    degree: int,
    engine_gpus: float,
    score_gpus: float,
) -> tuple[str, RunConfig, tuple[str, ...]]:
    cluster = config.cluster
    scoring = {"num_workers": 1, "gpus_per_worker": score_gpus}
    sections: dict[str, dict[str, Any]] = {
        "learner": {"num_workers": learners, "gpus_per_worker": learner_gpus},
        "rollout": {
            "num_engines": engines,
            "tensor_parallel_size": degree,
            "gpus_per_engine": engine_gpus,
        },
        "reward": scoring,
        "reference": scoring,
    }
    if cluster.device == "cpu":
        sections["learner"]["cpus_per_worker"] = learner_cpus
    if not is_online(config):
        sections = {"learner": sections["learner"]}
    update = {
        name: getattr(cluster, name).model_copy(update=fields) for name, fields in sections.items()
    }
    changed = config.model_copy(update={"cluster": cluster.model_copy(update=update)})
    settings = tuple(
        f"cluster.{name}.{field}={value:g}"
        for name, fields in sections.items()
        for field, value in fields.items()
        if value != getattr(getattr(cluster, name), field)
    )
    return kind, changed, settings
