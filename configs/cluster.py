"""The `cluster` section: where everything runs, and what becomes of what fails."""

from typing import Annotated, Literal

from pydantic import Field

from configs.base import NonNegative, NonNegativeFloat, Positive, PositiveFloat, Section
from configs.kubernetes import KubernetesConfig
from configs.metrics import MetricsConfig
from configs.reward_service import RewardServiceConfig

MOST_PROFILED = 20
"""Steps: a trace of more is too large for what shows it."""


class ProfileConfig(Section):
    """A trace of some steps on every rank, `profile/rank=R.json.gz` of the run folder. These steps
    take longer, and the trace is held in memory until it is written."""

    first_step: Positive = 3
    """The first steps also set things up."""
    num_steps: Annotated[int, Field(gt=0, le=MOST_PROFILED)] = 2


class LearnerPlacement(Section):
    """Ray Train worker group: one ZeRO-3 rank per worker."""

    num_workers: Positive = 1
    cpus_per_worker: PositiveFloat = 1
    gpus_per_worker: NonNegativeFloat = 0
    offload_optimizer: bool = False
    """Keep optimizer states in host memory (GPU only)."""
    persistence_threshold: NonNegative = 100_000
    """Parameters smaller than this stay whole on every rank; 0 partitions all (ZeRO-3)."""
    min_workers: Positive | None = None
    """Go on with as few as these where nodes are lost or taken away, and grow to `num_workers`
    again when there is room; where empty, exactly `num_workers`."""
    resize_interval_s: PositiveFloat = 60.0
    """Seconds between two looks whether the worker group could grow."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Ray node labels where learners may live, such as {role: learner}."""
    max_failures: NonNegative = 8
    """Restarts of the worker group in a row, without a new checkpoint in between, before the run
    fails. What another try would meet again, such as a full disk or a loss that is NaN, ends the
    run at once."""
    start_deadline_s: PositiveFloat = 1800.0
    """A rank that takes longer to load its model, or a checkpoint, is stuck, and ends itself."""
    phase_deadline_s: PositiveFloat = 1800.0
    """A rank whose update, sync or checkpoint takes longer is stuck, and ends itself."""
    profile: ProfileConfig | None = None
    """Trace some steps with torch's profiler; where empty, none."""


class RolloutPlacement(Section):
    """The fleet of vLLM engines."""

    num_engines: Positive = 1
    tensor_parallel_size: Positive = 1
    cpus_per_engine: PositiveFloat = 1
    gpus_per_engine: NonNegativeFloat = 0
    kv_cache_gib: PositiveFloat = 0.25
    """Memory of each engine's KV cache."""
    max_num_seqs: Positive = 128
    enforce_eager: bool = True
    """Skip torch.compile: quicker start, slower decoding."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Ray node labels where engines may live, such as {role: rollout}."""
    min_engines: Positive | None = None
    """Fewest engines of an elastic fleet; where empty, always `num_engines`."""
    max_engines: Positive | None = None
    """Most engines of an elastic fleet."""
    groups_per_engine: Positive = 8
    """Prompt groups waiting for one engine above which an elastic fleet asks for another."""
    idle_s: PositiveFloat = 30.0
    """Seconds with too little to do after which an elastic fleet lets an engine go."""
    release_s: PositiveFloat = 60.0
    """What an engine that leaves may take to hand over what it has begun."""
    check_interval_s: PositiveFloat = 2.0
    """Seconds between two looks at every engine: each generates one token."""
    check_deadline_s: PositiveFloat = 9.0
    """An engine that generated nothing for so long is stuck, and is replaced."""
    attempts: Positive = 5
    """Tries of one prompt group, each on another engine, before the run stops."""
    start_deadline_s: PositiveFloat = 300.0
    generate_deadline_s: PositiveFloat = 600.0


class ScoringPlacement(Section):
    """A frozen model: one process, or a ZeRO-3 inference group where one device is too small."""

    num_workers: Positive = 1
    cpus_per_worker: NonNegativeFloat = 0.5
    gpus_per_worker: NonNegativeFloat = 0
    labels: dict[str, str] = Field(default_factory=dict)
    """Ray node labels where these may live, such as {role: scoring}."""
    start_deadline_s: PositiveFloat = 300.0


class SyncConfig(Section):
    """How new weights reach the engines."""

    transport: Literal["auto", "gloo", "nccl", "ipc"] = "auto"
    """auto: gloo on CPU; ipc where learner and engine share one GPU; else nccl."""
    bucket_mib: Positive = 64
    """Weights travel packed in buffers of this size."""
    deadline_s: PositiveFloat = 120.0
    """Of one whole update; an engine that is late is replaced."""
    stall_s: PositiveFloat = 8.0
    """Of each part of an update: to join, to pause, to send one buffer (gloo), to install. An
    engine that takes longer is given up by all; one that is late to answer the probe and shows a
    sign of life has `deadline_s`."""
    attempts: Positive = 3
    """Tries of one sync, each with the engines that are left, before the run stops."""
    probe_tolerance: PositiveFloat | None = None
    """Largest difference, in nats, between engine and learner log-probs after a sync. Where
    empty: 1e-4 in float32, 0.25 in bfloat16."""
    probe_sequences: Positive = 4


class CheckpointConfig(Section):
    """Resumable state of the learner."""

    interval: Positive = 20
    """Learner steps between checkpoints. A crash costs no more, but for steps that were taken while
    the last checkpoint was being uploaded."""
    keep: Positive = 2
    """Whole checkpoints to keep; storage holds one more while the next one is written."""
    storage: str | None = None
    """Folder that all nodes share, or a URL for fsspec such as s3://bucket/folder; where empty,
    `checkpoints` in the run folder."""
    scratch: str | None = None
    """Folder on each node for a copy of its ranks' state; where empty, the system's for temporary
    files."""
    asynchronous: bool = True
    """Upload while training goes on; otherwise wait for it."""


class ClusterConfig(Section):
    """Where everything runs."""

    run_dir: str
    """Folder of everything the run writes; must not hold another run."""
    address: str | None = None
    """A running Ray cluster (`auto` or an address); where empty, one is started on this machine."""
    device: Literal["cpu", "cuda"] = "cpu"
    memory_gib: PositiveFloat | None = None
    """Memory the run may plan with; where empty, what this machine has free."""
    learner: LearnerPlacement = LearnerPlacement()
    rollout: RolloutPlacement = RolloutPlacement()
    reward: ScoringPlacement = ScoringPlacement()
    reference: ScoringPlacement = ScoringPlacement()
    reward_service: RewardServiceConfig = RewardServiceConfig()
    sync: SyncConfig = SyncConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    metrics: MetricsConfig = MetricsConfig()
    dashboard: bool = True
    """Start Ray's dashboard with a cluster of our own."""
    learner_deadline_s: PositiveFloat = 1800.0
    """Longest silence of the learner before the run is stopped as hung."""
    kubernetes: KubernetesConfig | None = None
    """For `attune k8s render`."""
