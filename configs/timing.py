"""How long a learner step takes, reckoned from throughputs that are assumed, not measured.

Matrix products decide: 2 P operations a token forward and twice that backward, P the parameters of
the model, and 2 L T H for attention over T tokens. Decoding reads all weights once for each token
of the batch, so memory bandwidth decides there. What else a step does is small.
"""

from dataclasses import dataclass

from configs.memory import (
    ModelShape,
    engine_count,
    frozen_models,
    is_online,
    model_bytes,
    sequences_per_step,
)
from configs.schema import RunConfig


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """What one device (one CPU core, one GPU) is taken to do in a second, in use, not on paper."""

    tflops: float
    """10^12 operations in the matrix products of training and prefill."""
    memory_gb: float
    """10^9 bytes read from memory while decoding; cores of one CPU share theirs."""
    link_gb: float
    """10^9 bytes of weights that reach the engines."""
    token_s: float
    """Seconds that an engine needs for a token of its batch, whatever the model."""
    why: str


ASSUMED = {
    "cpu": Throughput(
        tflops=0.04,
        memory_gb=8.0,
        link_gb=0.5,
        token_s=0.015,
        why="a core of a recent server in float32, about half of its peak",
    ),
    "cuda": Throughput(
        tflops=350.0,
        memory_gb=2000.0,
        link_gb=20.0,
        token_s=0.004,
        why="a GPU of the H100 class in bfloat16, 35 % of its peak",
    ),
}


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one learner step by phase."""

    sample: float
    score: float
    train: float
    sync: float
    overlapped: bool
    """Sampling and scoring of the next step go on beside training."""

    @property
    def step(self) -> float:
        """One step in the steady state."""
        ahead, behind = self.sample + self.score, self.train
        return (max(ahead, behind) if self.overlapped else ahead + behind) + self.sync


def step_time(
    config: RunConfig, shape: ModelShape, throughput: Throughput, cores: int | None = None
) -> StepTime:
    """The phases of one step. `cores`: of the one CPU machine that all roles share.

    Sequences are taken at their longest: `model.max_length`, of which
    `data.sampling.max_new_tokens` are sampled.
    """
    learners = config.cluster.learner.num_workers
    tokens = sequences_per_step(config) * config.model.max_length
    forward = _forward_flops(config, shape)
    speed = throughput.tflops * 1e12
    learner = speed * learners * _devices(config, "learner", cores)
    passes = (4 if config.model.gradient_checkpointing else 3) * config.algorithm.num_epochs
    if is_online(config):
        passes += 1  # old log-probs
    networks = 2 if config.algorithm.advantage == "gae" else 1
    train = networks * passes * tokens * forward / learner
    if not is_online(config):
        return StepTime(sample=0, score=0, train=train, sync=0, overlapped=False)
    rewards = config.feedback.rewards.values()
    references = (config.model.reference_update != "none") * (
        1 + len(config.model.extra_references)
    )
    judge = speed * config.cluster.reward.num_workers * _devices(config, "reward", cores)
    peer = speed * config.cluster.reference.num_workers * _devices(config, "reference", cores)
    # Rewards and reference work side by side on devices of their own, in turn on shared cores.
    scores = [
        sum(map(frozen_models, rewards)) * tokens * forward / judge,
        references * tokens * forward / peer,
    ]
    score = sum(scores) if config.cluster.device == "cpu" else max(scores)
    sync = shape.parameters * model_bytes(config) / (throughput.link_gb * 1e9)
    return StepTime(
        sample=_sampling(config, shape, throughput, cores),
        score=score,
        train=train,
        sync=sync,
        overlapped=config.algorithm.max_staleness > 0 and config.cluster.device == "cuda",
    )


def _sampling(
    config: RunConfig, shape: ModelShape, throughput: Throughput, cores: int | None
) -> float:
    """Prefill of all prompts, then token after token in batches of `max_num_seqs`."""
    rollout, data = config.cluster.rollout, config.data
    devices, count = _devices(config, "engine", cores), engine_count(config)
    speed = throughput.tflops * 1e12 * devices
    forward = _forward_flops(config, shape)
    replies = -(-sequences_per_step(config) // count)
    prompts = -(-data.prompts_per_step // count)
    prefill = prompts * (config.model.max_length - data.sampling.max_new_tokens) * forward / speed
    at_once = min(rollout.max_num_seqs, replies)
    rounds = -(-replies // rollout.max_num_seqs)
    cache = at_once * config.model.max_length / 2 * shape.cache_values * model_bytes(config)
    memory = throughput.memory_gb * 1e9 * (devices if config.cluster.device == "cuda" else 1)
    reading = (shape.parameters * model_bytes(config) + cache) / memory
    token = max(reading, at_once * forward / speed) + throughput.token_s
    return prefill + rounds * data.sampling.max_new_tokens * token


def _forward_flops(config: RunConfig, shape: ModelShape) -> float:
    """Operations of one token's forward pass."""
    attention = 2 * shape.layers * config.model.max_length * shape.hidden
    return 2 * shape.parameters + attention


def _devices(config: RunConfig, role: str, cores: int | None) -> float:
    """Devices that one process of a role computes on: its GPUs, or its cores."""
    cluster = config.cluster
    cpus, gpus = {
        "learner": (cluster.learner.cpus_per_worker, cluster.learner.gpus_per_worker),
        "engine": (cluster.rollout.cpus_per_engine, cluster.rollout.gpus_per_engine),
        "reward": (cluster.reward.cpus_per_worker, cluster.reward.gpus_per_worker),
        "reference": (cluster.reference.cpus_per_worker, cluster.reference.gpus_per_worker),
    }[role]
    if cluster.device == "cuda":
        return max(1.0, gpus)  # roles that share a GPU take turns on the whole of it
    threads = max(1, cpus)
    processes = {"learner": cluster.learner.num_workers, "engine": engine_count(config)}
    sharing = max(1.0, threads * processes.get(role, 1) / cores) if cores else 1.0
    return threads / sharing
