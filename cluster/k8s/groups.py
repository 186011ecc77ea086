"""How many pods of which size a run needs, from the numbers its YAML states for learner, engines
and judges."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from configs.cluster import ClusterConfig
from configs.errors import ConfigError
from configs.kubernetes import KubernetesConfig, Placing, WorkerPods
from configs.schema import OFFLINE, RunConfig

MARKET = "ray.io/market-type"
"""Ray's own label for what a node costs: spot or on-demand."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """One worker group: pods that are alike."""

    name: str
    labels: dict[str, str]
    """Ray node labels."""
    start: int
    least: int
    most: int
    """Pods at first, at least and at most."""
    cpus: int
    gpus: int
    memory_gib: float
    """Of one pod."""
    placing: Placing
    priority: int = 0
    """The autoscaler asks groups of higher priority first."""
    drain_s: int | None = None
    """Seconds in which a pod that is taken away ends its work; None: it is not taken away."""

    @property
    def is_elastic(self) -> bool:
        """Whether the number of pods changes during a run."""
        return self.least < self.most


def kubernetes(config: RunConfig) -> KubernetesConfig:
    """The section, or a `ConfigError` where there is none."""
    section = config.cluster.kubernetes
    if section is None:
        raise ConfigError(
            "cluster.kubernetes is empty; give at least cluster.kubernetes.image=REGISTRY/NAME:TAG"
        )
    return section


def run_groups(config: RunConfig) -> list[Group]:
    """The worker groups of a run: learner, and for sampling methods rollout and scoring."""
    kinds = [_learner(config)]
    if config.algorithm.name not in OFFLINE:
        kinds += [*_rollout(config), _scoring(config, _judges(config) + _references(config))]
    elif config.feedback.mixture is not None:
        models = config.feedback.mixture.num_models * config.cluster.reward.num_workers
        kinds.append(_scoring(config, [_share(config.cluster, "reward")] * models))
    return [group for group in kinds if group.most > 0]


def role_labels(config: RunConfig) -> dict[str, dict[str, str]]:
    """Ray labels of each role: the run's own where it states some, else {role: NAME}."""
    cluster = config.cluster
    return {
        "learner": cluster.learner.labels or {"role": "learner"},
        "rollout": cluster.rollout.labels or {"role": "rollout"},
        # Rewards and references share pods, so they share labels.
        "scoring": cluster.reward.labels or cluster.reference.labels or {"role": "scoring"},
    }


def gpus_for(shares: Sequence[float]) -> int:
    """Whole GPUs that hold actors of these shares, none of which is split over two GPUs."""
    whole = sum(math.ceil(share) for share in shares if share >= 1)
    bins: list[float] = []
    for share in sorted((share for share in shares if 0 < share < 1), reverse=True):
        place = next((i for i, used in enumerate(bins) if used + share <= 1 + 1e-9), None)
        if place is None:
            bins.append(share)
        else:
            bins[place] += share
    return whole + len(bins)


def _learner(config: RunConfig) -> Group:
    section, learner = kubernetes(config), config.cluster.learner
    pods = section.learner
    most = math.ceil(learner.num_workers / pods.per_pod)
    per_pod = min(pods.per_pod, learner.num_workers)
    return Group(
        name="learner",
        labels=role_labels(config)["learner"] | {MARKET: "on-demand"},
        start=most,
        least=math.ceil((learner.min_workers or learner.num_workers) / pods.per_pod),
        most=most,
        cpus=math.ceil(per_pod * learner.cpus_per_worker),
        gpus=gpus_for([learner.gpus_per_worker] * per_pod),
        memory_gib=pods.memory_gib,
        placing=pods,
    )


def _rollout(config: RunConfig) -> list[Group]:
    """The engines' pods, and where asked for a second group for when the first has no nodes."""
    rollout, pods = config.cluster.rollout, kubernetes(config).rollout
    extra = config.data.source == "policy+reference"  # a second policy samples beside the fleet
    engines = (rollout.max_engines or rollout.num_engines) + extra
    per_pod = min(pods.per_pod, engines)
    market = "spot" if pods.spot else "on-demand"
    first = Group(
        name=f"rollout-{market}" if pods.fallback else "rollout",
        labels=role_labels(config)["rollout"] | {MARKET: market},
        start=math.ceil((rollout.num_engines + extra) / pods.per_pod),
        least=math.ceil(((rollout.min_engines or rollout.num_engines) + extra) / pods.per_pod),
        most=math.ceil(engines / pods.per_pod),
        cpus=math.ceil(per_pod * rollout.cpus_per_engine),
        gpus=gpus_for([rollout.gpus_per_engine] * per_pod),
        memory_gib=pods.memory_gib,
        placing=pods,
        priority=10,
        drain_s=pods.drain_s,
    )
    if pods.fallback is None:
        return [first]
    second = replace(
        first,
        name="rollout-fallback",
        labels=role_labels(config)["rollout"] | {MARKET: "on-demand"},
        start=0,
        least=0,
        placing=pods.fallback,
        priority=0,
    )
    # The first group may hold fewer pods than the run wants: the second then makes up for them.
    return [replace(first, least=0), second]


def _judges(config: RunConfig) -> list[tuple[float, float]]:
    if config.feedback.service is not None:  # they judge elsewhere
        return []
    workers = len(config.feedback.rewards) * config.cluster.reward.num_workers
    return [_share(config.cluster, "reward")] * workers


def _references(config: RunConfig) -> list[tuple[float, float]]:
    models = 1 + len(config.model.extra_references)
    return [_share(config.cluster, "reference")] * (models * config.cluster.reference.num_workers)


def _share(cluster: ClusterConfig, role: str) -> tuple[float, float]:
    """CPUs and GPUs of one worker of a role."""
    placement = getattr(cluster, role)
    return placement.cpus_per_worker, placement.gpus_per_worker


def _scoring(config: RunConfig, workers: list[tuple[float, float]]) -> Group:
    pods: WorkerPods = kubernetes(config).scoring
    chunks = [workers[i : i + pods.per_pod] for i in range(0, len(workers), pods.per_pod)]
    return Group(
        name="scoring",
        labels=role_labels(config)["scoring"] | {MARKET: "on-demand"},
        start=len(chunks),
        least=len(chunks),
        most=len(chunks),
        cpus=max((math.ceil(sum(cpus for cpus, _ in chunk)) for chunk in chunks), default=0) or 1,
        gpus=max((gpus_for([gpus for _, gpus in chunk]) for chunk in chunks), default=0),
        memory_gib=pods.memory_gib,
        placing=pods,
    )
