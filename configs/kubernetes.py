"""The `cluster.kubernetes` section: what `attune k8s render` cannot learn from the rest of a run.

Numbers of learners and engines, and the CPUs and GPUs of each, are stated where they belong
(`cluster.learner`, `cluster.rollout`, ...); the manifests are computed from those.
"""

from typing import Annotated, Literal

from pydantic import Field

from configs.base import NonNegative, Positive, PositiveFloat, Section

NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
LONGEST_NAME = 38
"""KubeRay takes 47 letters, and `-rewards` is added here."""

Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=LONGEST_NAME)]

IMAGE_PATTERN = r"^[^\s:@]+(:\d+/[^\s:@]+)?(:[\w.-]+(@\S+)?|@\S+)$"
Image = Annotated[str, Field(pattern=IMAGE_PATTERN)]

MOUNT_PATTERN = r"^(/[\w.-]+)+$"

PATTERNS = {
    NAME_PATTERN: "lower-case letters, digits and -, a letter first",
    IMAGE_PATTERN: "REGISTRY/NAME:TAG, or with @DIGEST",
    MOUNT_PATTERN: "an absolute path, such as /shared",
}
"""What a text should be, in words."""


class Placing(Section):
    """On which Kubernetes nodes the pods of a group run."""

    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the Kubernetes nodes, such as {node.kubernetes.io/instance-type: g5.xlarge}."""
    tolerations: dict[str, str] = Field(default_factory=dict)
    """Taints that are put up with, key to value; an empty value stands for any."""
    priority_class: str | None = None
    """PriorityClass of the pods: who goes first where there is no room for all."""


class HeadPod(Placing):
    """Ray's head: control plane and driver, no actors of the run."""

    cpus: Positive = 2
    """For control plane and driver; Ray places nothing by them."""
    memory_gib: PositiveFloat = 8


class WorkerPods(Placing):
    """Pods of a worker group."""

    per_pod: Positive = 1
    """Learner ranks, engines, judges or replicas in one pod."""
    memory_gib: PositiveFloat = 16
    """Of one pod; Ray's object store takes 30 % of it."""


class RolloutPods(WorkerPods):
    """Pods of engines, which may be taken away at any time."""

    spot: bool = True
    """Ray label ray.io/market-type: spot; `node_selector` and `tolerations` say which nodes are."""
    fallback: Placing | None = None
    """A second group, used where the first has no nodes to give: on-demand ones."""
    drain_s: Positive = 60
    """Seconds in which a pod that is taken away may end its work; clouds give 15 to 120."""


class ScoringPods(WorkerPods):
    """Pods of rewards and references."""

    per_pod: Positive = 8


class RewardServicePods(WorkerPods):
    """The reward service as a RayService of its own, shared by several runs. It has as many
    replicas as `cluster.reward_service` says, each with the CPUs and GPUs of `cluster.reward`."""

    clients: tuple[str, ...] = ()
    """Namespaces whose pods may ask for rewards, beside the pods of runs in this one."""


class RedisConfig(Section):
    """Where the head keeps its tables, so that a new head finds the cluster of the old one."""

    address: str
    """Such as redis:6379."""
    secret: str | None = None
    """Secret with the password under the key `password`."""


class KubernetesConfig(Section):
    """Manifests for KubeRay; only `attune k8s` reads this section."""

    image: Image
    """With a tag or a digest; `cluster/k8s/Dockerfile` builds it."""
    name: Name | None = None
    """All names begin with it; where empty, the last part of `cluster.run_dir`."""
    namespace: Name = "attune"
    """Of everything that is made."""
    workload: Literal["job", "cluster"] = "job"
    """job: a RayJob with a cluster of its own, which ends with it; cluster: a RayCluster that stays
    and takes runs through `ray job submit`."""
    claim: Name = "attune"
    """PersistentVolumeClaim that all pods mount (ReadWriteMany): models, data and run folders."""
    claim_gib: Positive | None = None
    """Make the claim, of this size; where empty, it must be there already."""
    storage_class: str | None = None
    """Of a claim that is made."""
    mount_path: Annotated[str, Field(pattern=MOUNT_PATTERN)] = "/shared"
    """Where the claim is mounted; all paths of the run lie below it."""
    token_secret: Name = "attune-tokens"
    """Secret with `auth_token` (Ray) and `reward_token` (reward service)."""
    service_account: str | None = None
    """Of all pods; where empty, KubeRay makes one for the head and workers have none."""
    pull_secret: str | None = None
    """Secret for the image's registry."""
    queue: str | None = None
    """Kueue's LocalQueue; Kueue then decides when the run starts."""
    queue_priority: str | None = None
    """Kueue's WorkloadPriorityClass."""
    backoff_limit: NonNegative = 3
    """New clusters that go on with the run after it failed."""
    ttl_s: NonNegative = 600
    """Seconds that a finished job's cluster stays, for its logs."""
    deadline_s: Positive | None = None
    """Seconds after which a job is ended whatever its state."""
    idle_s: Positive = 120
    """Seconds after which the autoscaler takes a pod away that does nothing."""
    head: HeadPod = HeadPod()
    learner: WorkerPods = WorkerPods()
    rollout: RolloutPods = RolloutPods()
    scoring: ScoringPods = ScoringPods()
    reward_service: RewardServicePods | None = None
    """Where given, a RayService beside the run."""
    redis: RedisConfig | None = None
    """GCS fault tolerance: workers outlive the head."""
    operator_namespace: Name = "kuberay-operator"
    """Namespace of the KubeRay operator, which the network policy lets in."""
    monitoring_namespace: Name = "monitoring"
    """Namespace of Prometheus, which the network policy lets in."""
    monitor_labels: dict[str, str] = Field(default_factory=lambda: {"release": "prometheus"})
    """Labels by which Prometheus finds a PodMonitor."""
