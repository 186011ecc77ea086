"""Estimated memory of each role's process, part by part, each with the setting that lowers it.

Learner, with P parameters over R ZeRO-3 ranks: P/R x (4 master + 8 Adam moments + 4 gradient +
working copy), one gathered layer and the next one being fetched, and the activations of one
micro-batch. Estimates err upwards; they are there to refuse what cannot fit, not to bill bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from configs.schema import OFFLINE, RewardConfig, RunConfig
from configs.sizes import count_parameters

GIB = 1 << 30

TORCH_PROCESS_GIB = 0.7
"""Resident size of a process with torch, transformers and DeepSpeed, before any model."""
ENGINE_PROCESS_GIB = 1.0
"""Resident size of a vLLM process before any model."""
RAY_GIB = 1.0
"""Ray's own processes, its object store in use, and the small actors that only hold records."""

STATE_BYTES = 4 + 8 + 4
"""Per parameter: float32 master, Adam's two moments, gradient."""
LOGIT_CHUNK = 1024
"""Rows of logits that exist at a time (`rl.logprobs`)."""
LOGIT_COPIES = 3
"""Logits, their exponentials and their gradient."""
HIDDEN_PER_TOKEN, INTERMEDIATE_PER_TOKEN = 19, 4
"""Values kept per token and layer for the backward pass, as multiples of the hidden and of the
intermediate size. Measured on transformers 5.19: Qwen3 in bfloat16 19, float32 15; Llama less."""

SMALLER_MODEL = "choose a smaller model.path"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One reason why a process needs memory."""

    name: str
    gib: float
    remedy: str
    """What the user can do to make it smaller; empty where it is as small as it gets."""
    where: Literal["host", "gpu"] = "host"


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a config.json that decide memory."""

    parameters: int
    hidden: int
    intermediate: int
    layers: int
    vocabulary: int

    @property
    def values_per_layer(self) -> int:
        """Values that one token leaves behind in one layer for the backward pass."""
        return HIDDEN_PER_TOKEN * self.hidden + INTERMEDIATE_PER_TOKEN * self.intermediate

    @property
    def largest_layer(self) -> int:
        """Parameters of the largest block that ZeRO-3 gathers at once."""
        embedding = self.vocabulary * self.hidden
        return max(embedding, (self.parameters - embedding) // max(1, self.layers))


def model_shape(model_config: Mapping[str, Any]) -> ModelShape:
    """The shape that a parsed config.json describes; `ValueError` where its size is unknown."""
    parameters = count_parameters(model_config)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    return ModelShape(parameters, *(model_config[name] for name in names))


def learner_parts(config: RunConfig, shape: ModelShape | None) -> tuple[Part, ...]:
    """Memory of one learner rank; with the critic beside the policy where advantages are GAE."""
    algorithm, ranks = config.algorithm, config.cluster.learner.num_workers
    process = _process(TORCH_PROCESS_GIB, "cluster.learner.num_workers", ranks)
    if shape is None:
        return (process,)
    where, width = _device(config), _bytes(config)
    state_home = "host" if config.cluster.learner.offload_optimizer else where
    models = ("policy", "critic") if algorithm.advantage == "gae" else ("policy",)
    parts = [process]
    for name in models:
        remedy = SMALLER_MODEL if name == "policy" else "use algorithm.name=rloo, without a critic"
        share = shape.parameters / ranks
        parts += [
            _part(f"{name} optimizer", share * STATE_BYTES, remedy, state_home),
            _part(f"{name} weights", share * width, _narrower(config), where),
            _part(f"{name} layers", 2 * shape.largest_layer * width, _narrower(config), where),
        ]
    tokens = _micro_batch_tokens(config)
    remedy = "lower algorithm.tokens_per_micro_batch"
    if not config.model.gradient_checkpointing:
        remedy += " or set model.gradient_checkpointing=true"
    logits = LOGIT_COPIES * 4 * min(LOGIT_CHUNK, tokens) * shape.vocabulary
    parts.append(_part("activations", _activation_bytes(config, shape, tokens), remedy, where))
    parts.append(_part("logits", logits, SMALLER_MODEL, where))
    return tuple(parts)


def engine_parts(config: RunConfig, shape: ModelShape | None) -> tuple[Part, ...]:
    """Memory of one vLLM engine, its tensor-parallel processes together."""
    rollout, where = config.cluster.rollout, _device(config)
    several = "lower cluster.rollout.num_engines" if rollout.num_engines > 1 else ""
    parts = (
        _process(
            ENGINE_PROCESS_GIB * rollout.tensor_parallel_size,
            "cluster.rollout.num_engines",
            rollout.num_engines,
        ),
        _part("KV cache", rollout.kv_cache_gib * GIB, "lower cluster.rollout.kv_cache_gib", where),
    )
    if shape is None:
        return parts
    buckets = 2 * config.cluster.sync.bucket_mib * (1 << 20)
    logits = 2 * 4 * rollout.max_num_seqs * shape.vocabulary  # and their log-probs
    weights = shape.parameters * _bytes(config)
    return (
        *parts,
        _part("weights", weights, several or _narrower(config), where),
        _part("sync buffers", buckets, "lower cluster.sync.bucket_mib", where),
        _part("logits", logits, "lower cluster.rollout.max_num_seqs", where),
    )


def scoring_parts(
    config: RunConfig, shape: ModelShape | None, role: Literal["reward", "reference"], models: int
) -> tuple[Part, ...]:
    """Memory of one process that holds its share of `models` frozen models."""
    workers = (config.cluster.reward if role == "reward" else config.cluster.reference).num_workers
    process = _process(TORCH_PROCESS_GIB, f"cluster.{role}.num_workers", workers)
    if shape is None or models == 0:
        return (process,)
    where, width, tokens = _device(config), _bytes(config), _micro_batch_tokens(config)
    gathered = 2 * shape.largest_layer if workers > 1 else 0
    weights = (models * shape.parameters / workers + gathered) * width
    forward = tokens * shape.values_per_layer * width  # without gradients one layer is alive
    parts = (
        process,
        _part("weights", weights, _narrower(config), where),
        _part("forward pass", forward, "lower algorithm.tokens_per_micro_batch", where),
    )
    rewards = config.feedback.rewards.values()
    judges = sum(reward.kind == "llm_judge" for reward in rewards) if role == "reward" else 0
    if judges:
        cache = judges * config.cluster.rollout.kv_cache_gib * GIB
        engine = judges * (ENGINE_PROCESS_GIB - TORCH_PROCESS_GIB) * GIB
        parts += (
            _part("KV cache of judges", cache, "lower cluster.rollout.kv_cache_gib", where),
            _part("engines of judges", engine, "", "host"),
        )
    if role == "reward" and all(reward.kind != "implicit" for reward in rewards):
        return parts
    logits = 2 * 4 * min(LOGIT_CHUNK, tokens) * shape.vocabulary
    return (*parts, _part("logits", logits, SMALLER_MODEL, where))


def frozen_models(reward: RewardConfig) -> int:
    """How many models one named reward holds."""
    match reward.kind:
        case "gold" | "function" | "label":
            return 0
        case "implicit":
            return 2
        case "ensemble":
            return len(reward.paths)
        case _:
            return 1


def _activation_bytes(config: RunConfig, shape: ModelShape, tokens: int) -> float:
    per_layer = shape.values_per_layer
    if config.model.gradient_checkpointing:
        values = shape.layers * shape.hidden + 2 * per_layer  # inputs of all, the inside of one
    else:
        values = (shape.layers + 1) * per_layer  # one more: what the backward pass is making
    return tokens * values * _bytes(config)


def _micro_batch_tokens(config: RunConfig) -> int:
    """Padded tokens of the largest micro-batch that a rank can meet."""
    sequences = sequences_per_step(config)
    share = -(-sequences // (config.cluster.learner.num_workers * config.algorithm.num_minibatches))
    return min(config.algorithm.tokens_per_micro_batch, share * config.model.max_length)


def sequences_per_step(config: RunConfig) -> int:
    """Sequences in one learner step; a pair is two."""
    pairs = 2 if config.algorithm.name == "reward_model" else 1
    return config.data.prompts_per_step * config.data.samples_per_prompt * pairs


def is_online(config: RunConfig) -> bool:
    """Whether the policy is sampled from."""
    return config.algorithm.name not in OFFLINE


def _bytes(config: RunConfig) -> int:
    return 2 if config.model.dtype == "bfloat16" else 4


def _device(config: RunConfig) -> Literal["host", "gpu"]:
    return "gpu" if config.cluster.device == "cuda" else "host"


def _narrower(config: RunConfig) -> str:
    return SMALLER_MODEL if config.model.dtype == "bfloat16" else "set model.dtype=bfloat16"


def _process(gib: float, setting: str, count: int) -> Part:
    return Part(name="process", gib=gib, remedy=f"lower {setting}" if count > 1 else "")


def _part(name: str, size: float, remedy: str, where: Literal["host", "gpu"]) -> Part:
    return Part(name=name, gib=size / GIB, remedy=remedy, where=where)
