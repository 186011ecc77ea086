"""What a configuration amounts to: batches, processes, memory. Worked out before anything starts.

The answer of `--dry-run`, and the check that refuses a run this machine cannot hold.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from configs.memory import (
    GIB,
    ModelShape,
    engine_count,
    engine_parts,
    is_online,
    learner_parts,
    model_shape,
    reference_parts,
    reward_parts,
    reward_workers,
    sequences_per_step,
)
from configs.part import Part, at_peak, peak_gib
from configs.processes import ray_parts
from configs.schema import RunConfig

GPU_USABLE = 0.92
"""Of a GPU's memory; the rest is lost between the allocator's blocks."""
RECORD_BYTES = 24
"""Of one token in an experience: its id, masks and four log-probs, on the way twice."""


@dataclass(frozen=True, kw_only=True)
class Role:
    """A kind of process and how many of it run; cpus, gpus and parts are those of one."""

    name: str
    count: int
    cpus: float
    gpus: float
    parts: tuple[Part, ...]

    def gib(self, where: str) -> float:
        """Peak memory of one process on the `host` or the `gpu`."""
        return peak_gib(self.parts, where)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Numbers that follow from a configuration."""

    method: str
    num_steps: int
    sequences_per_step: int
    sequences_per_rank: int
    """The most that one learner rank holds of a step."""
    optimizer_steps_per_step: int
    tokens_per_step: int
    """Upper bound: every sequence at `model.max_length`."""
    total_samples: int
    """Replies sampled, demonstrations or pairs over the whole run."""
    roles: tuple[Role, ...]
    cpus: float
    """Logical CPUs that all roles ask Ray for."""
    gpus: float
    cores: int | None
    """Of this machine; None where the run goes to another cluster."""
    host_gib: float
    gpu_gib: float
    available_gib: float | None
    """Host memory to plan with; None where unknown."""
    one_gpu_gib: float | None
    """Memory of one GPU; None where unknown or where none is used."""
    fits: bool
    refusal: str | None
    """One line: the largest role and what to lower; None where the run fits."""
    warnings: tuple[str, ...]


def derive(
    config: RunConfig,
    model_config: Mapping[str, Any] | None,
    available_bytes: int | None,
    *,
    cores: int | None = None,
    one_gpu_gib: float | None = None,
) -> Plan:
    """The plan of a checked configuration.

    `model_config`: the policy's config.json, whose size stands for all models of the run; None
    where it is not known yet. `available_bytes` and `cores` describe this machine
    (`available_memory`, `available_cores`) and are set aside where `cluster.address` names a
    cluster; `cluster.memory_gib` goes before `available_bytes`. `one_gpu_gib`: memory of each GPU
    that the run will get.
    """
    shape = model_shape(model_config) if model_config is not None else None
    roles = _roles(config, shape)
    available = _available_gib(config, available_bytes)
    host = sum(role.count * role.gib("host") for role in roles)
    gpu = one_gpu_gib if config.cluster.device == "cuda" else None
    refusal = _gpu_refusal(roles, gpu) if gpu else None
    if refusal is None and available and host > available:
        refusal = _refusal(roles, host, available)
    sequences, algorithm = sequences_per_step(config), config.algorithm
    cpus = sum(role.count * role.cpus for role in roles)
    cores = None if config.cluster.address else cores
    return Plan(
        method=algorithm.name,
        num_steps=algorithm.num_steps,
        sequences_per_step=sequences,
        sequences_per_rank=-(-sequences // config.cluster.learner.num_workers),
        optimizer_steps_per_step=algorithm.num_epochs * algorithm.num_minibatches,
        tokens_per_step=sequences * config.model.max_length,
        total_samples=algorithm.num_steps
        * config.data.prompts_per_step
        * config.data.samples_per_prompt,
        roles=roles,
        cpus=cpus,
        gpus=sum(role.count * role.gpus for role in roles),
        cores=cores,
        host_gib=host,
        gpu_gib=sum(role.count * role.gib("gpu") for role in roles),
        available_gib=available,
        one_gpu_gib=gpu,
        fits=refusal is None,
        refusal=refusal,
        warnings=_warnings(cpus, cores, shape, available),
    )


def render(plan: Plan) -> str:
    """The plan as text for a terminal."""
    steps = plan.num_steps * plan.optimizer_steps_per_step
    lines = [
        f"{plan.method}: {plan.num_steps:,} learner steps, {plan.total_samples:,} samples",
        f"  a step      {plan.sequences_per_step:,} sequences, {plan.sequences_per_rank:,} a rank, "
        f"at most {plan.tokens_per_step:,} tokens",
        f"  optimizer   {plan.optimizer_steps_per_step} steps a learner step, {steps:,} in all",
        "",
        f"  {'role':<12}{'count':>6}{'cpus':>8}{'gpus':>8}{'host GiB':>10}{'gpu GiB':>10}  largest",
    ]
    lines += [_row(role) for role in plan.roles]
    totals = f"{plan.cpus:>8g}{plan.gpus:>8g}{plan.host_gib:>10.2f}{plan.gpu_gib:>10.2f}"
    lines.append(f"  {'total':<12}{'':>6}{totals}")
    lines.append(f"  {'':<12}(cpus, gpus and GiB are those of one process; the total counts all)")
    if plan.available_gib is not None or plan.one_gpu_gib is not None:
        host, gpu = (
            f"{n:>10.2f}" if n else f"{'':>10}" for n in (plan.available_gib, plan.one_gpu_gib)
        )
        lines.append(
            f"  {'available':<12}{'':>22}{host}{gpu}{'  each' * (plan.one_gpu_gib is not None)}"
        )
    lines += [f"warning: {warning}" for warning in plan.warnings]
    lines.append(f"refused: {plan.refusal}" if plan.refusal else "fits")
    return "\n".join(lines)


def _roles(config: RunConfig, shape: ModelShape | None) -> tuple[Role, ...]:
    cluster = config.cluster
    learner = Role(
        name="learner",
        count=cluster.learner.num_workers,
        cpus=cluster.learner.cpus_per_worker,
        gpus=cluster.learner.gpus_per_worker,
        parts=learner_parts(config, shape),
    )
    if not is_online(config):
        return _with_ray(config, [learner])
    engine = Role(
        name="engine",
        count=engine_count(config),
        cpus=cluster.rollout.cpus_per_engine,
        gpus=cluster.rollout.gpus_per_engine,
        parts=engine_parts(config, shape),
    )
    rewards = [
        Role(
            name=f"reward {name}",
            count=0 if config.feedback.service else reward_workers(config, reward),
            cpus=cluster.reward.cpus_per_worker,
            gpus=cluster.reward.gpus_per_worker,
            parts=reward_parts(config, shape, reward),
        )
        for name, reward in config.feedback.rewards.items()
    ]
    has_reference = config.model.reference_update != "none"
    reference = Role(
        name="reference",
        count=cluster.reference.num_workers * (1 + len(config.model.extra_references)),
        cpus=cluster.reference.cpus_per_worker,
        gpus=cluster.reference.gpus_per_worker,
        parts=reference_parts(config, shape),
    )
    return _with_ray(config, [learner, engine, *rewards, *[reference] * has_reference])


def _with_ray(config: RunConfig, roles: list[Role]) -> tuple[Role, ...]:
    """The roles, and what serves them all: driver, Ray, collector."""
    batch = sequences_per_step(config) * config.model.max_length * RECORD_BYTES
    parts = ray_parts(config, online=is_online(config), batch_bytes=batch)
    return *roles, Role(name="ray", count=1, cpus=0, gpus=0, parts=tuple(parts))


def _available_gib(config: RunConfig, available_bytes: int | None) -> float | None:
    if config.cluster.memory_gib is not None:
        return config.cluster.memory_gib
    if config.cluster.address or available_bytes is None:
        return None
    return available_bytes / GIB


def _refusal(roles: tuple[Role, ...], host: float, available: float) -> str:
    """Names the largest role and, in it, the largest part that can be made smaller."""
    largest = max(roles, key=lambda role: role.count * role.gib("host"))
    advice = _advice(largest, "host") or "free memory"
    return (
        f"the run needs about {host:.1f} GiB and {available:.1f} GiB is available: the largest "
        f"role is {largest.name} ({largest.count} x {largest.gib('host'):.1f} GiB); {advice}, or "
        "set cluster.memory_gib if there is more"
    )


def gpu_loads(roles: tuple[Role, ...]) -> list[tuple[float, dict[str, float]]]:
    """GPUs as Ray fills them: the share taken of each, and GiB by role.

    A process that wants whole GPUs spreads over its own; one that wants a share goes to the first
    GPU with room, as Ray packs them.
    """
    loads: list[tuple[float, dict[str, float]]] = []
    for role in roles:
        if role.gpus == 0:
            continue
        gib, whole = role.gib("gpu"), role.gpus >= 1
        for _ in range(role.count):
            if whole:
                loads += [(1.0, {role.name: gib / role.gpus})] * math.ceil(role.gpus)
                continue
            fitting = (n for n, (taken, _) in enumerate(loads) if taken + role.gpus <= 1 + 1e-6)
            number = next(fitting, len(loads))
            if number == len(loads):
                loads.append((0.0, {}))
            taken, inside = loads[number]
            inside = inside | {role.name: inside.get(role.name, 0.0) + gib}
            loads[number] = (taken + role.gpus, inside)
    return loads


def _gpu_refusal(roles: tuple[Role, ...], one_gpu_gib: float) -> str | None:
    """The fullest GPU and what to lower there; None where everything fits."""
    loads = gpu_loads(roles)
    if not loads:
        return None
    _, inside = max(loads, key=lambda load: sum(load[1].values()))
    needed = sum(inside.values())
    if needed <= one_gpu_gib * GPU_USABLE:
        return None
    largest = next(role for role in roles if role.name == max(inside, key=lambda n: inside[n]))
    advice = _advice(largest, "gpu") or "give it a GPU of its own"
    return (
        f"{' and '.join(inside)} on one GPU need about {needed:.1f} GiB, and {GPU_USABLE:.0%} of "
        f"its {one_gpu_gib:.0f} GiB can be used: {advice}, or take larger GPUs"
    )


def _advice(role: Role, where: str) -> str:
    """What to lower in a role: the remedy of its largest part that has one."""
    parts = [part for part in at_peak(role.parts, where) if part.remedy]
    return max(parts, key=lambda part: part.gib).remedy if parts else ""


def _warnings(
    cpus: float, cores: int | None, shape: ModelShape | None, available: float | None
) -> tuple[str, ...]:
    lines = []
    if cores is not None and cpus > cores:
        lines.append(f"roles ask for {cpus:g} CPUs and this machine has {cores}: they take turns")
    if shape is None:
        lines.append("the model's size is unknown: memory counts processes and KV caches only")
    if available is None:
        lines.append("memory is not checked: set cluster.memory_gib to what the run may take")
    return tuple(lines)


def _row(role: Role) -> str:
    where = "gpu" if role.gib("gpu") else "host"
    largest = max(at_peak(role.parts, where), key=lambda part: part.gib)
    return (
        f"  {role.name[:12]:<12}{role.count:>6}{role.cpus:>8g}{role.gpus:>8g}"
        f"{role.gib('host'):>10.2f}{role.gib('gpu'):>10.2f}  {largest.name} {largest.gib:.2f}"
    )
