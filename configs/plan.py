"""What a configuration amounts to: batches, processes, memory. Worked out before anything starts.

The answer of `--dry-run`, and the check that refuses a run this machine cannot hold.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from configs.memory import (
    GIB,
    RAY_GIB,
    ModelShape,
    Part,
    engine_parts,
    frozen_models,
    is_online,
    learner_parts,
    model_shape,
    scoring_parts,
    sequences_per_step,
)
from configs.schema import RunConfig


@dataclass(frozen=True, kw_only=True)
class Role:
    """A kind of process and how many of it run; cpus, gpus and parts are those of one."""

    name: str
    count: int
    cpus: float
    gpus: float
    parts: tuple[Part, ...]

    def gib(self, where: str) -> float:
        """Memory of one process on the `host` or the `gpu`."""
        return sum(part.gib for part in self.parts if part.where == where)


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
) -> Plan:
    """The plan of a checked configuration.

    `model_config`: the policy's config.json, whose size stands for all models of the run; None
    where it is not known yet. `available_bytes` and `cores` describe this machine
    (`available_memory`, `available_cores`) and are set aside where `cluster.address` names a
    cluster; `cluster.memory_gib` goes before `available_bytes`.
    """
    shape = model_shape(model_config) if model_config is not None else None
    roles = _roles(config, shape)
    available = _available_gib(config, available_bytes)
    host = RAY_GIB + sum(role.count * role.gib("host") for role in roles)
    refusal = _refusal(roles, host, available) if available and host > available else None
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
    lines.append(f"  {'ray':<12}{'':>6}{'':>8}{'':>8}{RAY_GIB:>10.2f}{'':>10}")
    totals = f"{plan.cpus:>8g}{plan.gpus:>8g}{plan.host_gib:>10.2f}{plan.gpu_gib:>10.2f}"
    lines.append(f"  {'total':<12}{'':>6}{totals}")
    lines.append(f"  {'':<12}(cpus, gpus and GiB are those of one process; the total counts all)")
    if plan.available_gib is not None:
        lines.append(f"  {'available':<12}{'':>22}{plan.available_gib:>10.2f}")
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
        return (learner,)
    engine = Role(
        name="engine",
        count=cluster.rollout.num_engines,
        cpus=cluster.rollout.cpus_per_engine,
        gpus=cluster.rollout.gpus_per_engine,
        parts=engine_parts(config, shape),
    )
    reward_models = sum(map(frozen_models, config.feedback.rewards.values()))
    reward = Role(
        name="reward",
        count=0 if config.feedback.service else cluster.reward.num_workers,
        cpus=cluster.reward.cpus_per_worker,
        gpus=cluster.reward.gpus_per_worker,
        parts=scoring_parts(config, shape, "reward", reward_models),
    )
    reference = Role(
        name="reference",
        count=cluster.reference.num_workers * (1 + len(config.model.extra_references)),
        cpus=cluster.reference.cpus_per_worker,
        gpus=cluster.reference.gpus_per_worker,
        parts=scoring_parts(config, shape, "reference", 1),
    )
    return learner, engine, reward, reference


def _available_gib(config: RunConfig, available_bytes: int | None) -> float | None:
    if config.cluster.memory_gib is not None:
        return config.cluster.memory_gib
    if config.cluster.address or available_bytes is None:
        return None
    return available_bytes / GIB


def _refusal(roles: tuple[Role, ...], host: float, available: float) -> str:
    """Names the largest role and, in it, the largest part that can be made smaller."""
    largest = max(roles, key=lambda role: role.count * role.gib("host"))
    parts = [part for part in largest.parts if part.where == "host" and part.remedy]
    advice = max(parts, key=lambda part: part.gib).remedy if parts else "free memory"
    return (
        f"the run needs about {host:.1f} GiB and {available:.1f} GiB is available: the largest "
        f"role is {largest.name} ({largest.count} x {largest.gib('host'):.1f} GiB); {advice}, or "
        "set cluster.memory_gib if there is more"
    )


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
    largest = max(role.parts, key=lambda part: part.gib)
    return (
        f"  {role.name:<12}{role.count:>6}{role.cpus:>8g}{role.gpus:>8g}{role.gib('host'):>10.2f}"
        f"{role.gib('gpu'):>10.2f}  {largest.name} {largest.gib:.2f}"
    )
