"""Estimated memory of each role's process, part by part, each with the setting that lowers it.

Learner, with P parameters over R ZeRO-3 ranks: P/R x (4 master + 8 Adam moments + 4 gradient +
working copy), the weights that ZeRO-3 keeps gathered, and in turn the activations of one
micro-batch or what the optimizer step takes besides. The sizes of processes without a model are
measured (`configs.processes`), and so is the whole (docs/planning.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from configs.part import Part
from configs.processes import (
    COMPILER_GIB,
    CUDA_CONTEXT_GIB,
    ENGINE_CORE_GIB,
    ENGINE_FRONT_GIB,
    FROZEN_GIB,
    LEARNER_GIB,
    RULE_GIB,
)
from configs.schema import MODEL_KINDS, OFFLINE, RewardConfig, RunConfig
from configs.sizes import count_parameters

GIB = 1 << 30

STATE_BYTES = 4 + 8 + 4
"""Per parameter: float32 master, Adam's two moments, gradient."""
LIVE_PARAMETERS = 10**9
"""Parameters that ZeRO-3 keeps gathered on every rank (`stage3_max_live_parameters` and
`stage3_max_reuse_distance` of DeepSpeed, both at their defaults)."""
BUCKET_PARAMETERS = 5 * 10**8
"""Gradients that are reduced at once (DeepSpeed's `reduce_bucket_size`, its default). The buffer is
allocated whole, which costs a GPU all of it, and a host what is written to."""
STEP_BYTES = 10
"""Per parameter of a rank, during the optimizer step: the flat gradient, Adam's root and update."""
KEPT_SHARE, KEPT_GIB = 0.4, 0.25
"""What a host's allocator keeps between blocks of activations: a share of them, at most so much.
Measured between 0 and 0.5 GiB, the most with small layers in several micro-batches."""
LOGIT_CHUNK = 1024
"""Rows of logits that exist at a time (`rl.logprobs`)."""
LOGIT_COPIES = 3
"""Logits, their exponentials and their gradient or entropy."""
HIDDEN_PER_TOKEN = {"bfloat16": 19, "float32": 15}
INTERMEDIATE_PER_TOKEN = 4
"""Values kept per token and layer for the backward pass, as multiples of the hidden and of the
intermediate size. Measured on Qwen3 with transformers 5.19; Llama keeps less."""
PREFILL_TOKENS = 8192
"""Prompt tokens that an engine on a GPU computes at once (vLLM's `max_num_batched_tokens`)."""
GRAPHS_GIB = 1.0
"""CUDA graphs of an engine that compiles. An assumption, not measured."""

SMALLER_MODEL = "choose a smaller model.path"


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a config.json that decide memory."""

    parameters: int
    hidden: int
    intermediate: int
    layers: int
    vocabulary: int
    heads: int
    key_heads: int
    head_width: int
    tied: bool
    """Whether the output embedding is the input's."""
    dtype: str | None
    """Of the stored weights, where the config says so."""

    @property
    def embedding(self) -> int:
        """Parameters of the input embedding."""
        return self.vocabulary * self.hidden

    @property
    def largest_layer(self) -> int:
        """Parameters of the largest block that is moved at once."""
        return max(self.embedding, (self.parameters - self.embedding) // max(1, self.layers))

    @property
    def cache_values(self) -> int:
        """Keys and values that a token leaves in all layers of an engine's cache."""
        return 2 * self.layers * self.key_heads * self.head_width

    def values_per_layer(self, dtype: str) -> int:
        """Values that one token leaves behind in one layer for the backward pass."""
        return HIDDEN_PER_TOKEN[dtype] * self.hidden + INTERMEDIATE_PER_TOKEN * self.intermediate


def model_shape(model_config: Mapping[str, Any]) -> ModelShape:
    """The shape that a parsed config.json describes; `ValueError` where its size is unknown."""
    parameters = count_parameters(model_config)
    heads, hidden = model_config["num_attention_heads"], model_config["hidden_size"]
    return ModelShape(
        parameters=parameters,
        hidden=hidden,
        intermediate=model_config["intermediate_size"],
        layers=model_config["num_hidden_layers"],
        vocabulary=model_config["vocab_size"],
        heads=heads,
        key_heads=model_config.get("num_key_value_heads") or heads,
        head_width=model_config.get("head_dim") or hidden // heads,
        tied=bool(model_config.get("tie_word_embeddings")),
        dtype=model_config.get("dtype") or model_config.get("torch_dtype"),
    )


def learner_parts(config: RunConfig, shape: ModelShape | None) -> tuple[Part, ...]:
    """Memory of one learner rank; with the critic beside the policy where advantages are GAE."""
    algorithm, ranks = config.algorithm, config.cluster.learner.num_workers
    process = _process(config, LEARNER_GIB, "cluster.learner.num_workers", ranks)
    if shape is None:
        return tuple(process)
    where, width = _device(config), model_bytes(config)
    states = "host" if config.cluster.learner.offload_optimizer else where
    models = ("policy", "critic") if algorithm.advantage == "gae" else ("policy",)
    share = shape.parameters / ranks
    live = min(shape.parameters, max(LIVE_PARAMETERS, 2 * shape.largest_layer))
    bucket = BUCKET_PARAMETERS if where == "gpu" else min(shape.parameters, BUCKET_PARAMETERS)
    parts = [*process]
    for name in models:
        remedy = "raise cluster.learner.num_workers" if where == "gpu" else SMALLER_MODEL
        remedy = remedy if name == "policy" else "use algorithm.name=rloo, without a critic"
        parts += [
            _part(f"{name} optimizer", share * STATE_BYTES, remedy, states),
            _part(f"{name} weights", share * width, _narrower(config), where),
            _part(f"{name} gathered", live * width, _narrower(config), where),
            _part(f"{name} gradient bucket", bucket * width, "", where),
            _part(f"{name} step", share * STEP_BYTES, remedy, states, phase="optimizer step"),
        ]
    tokens = micro_batch_tokens(config)
    remedy = "lower algorithm.tokens_per_micro_batch"
    if not config.model.gradient_checkpointing:
        remedy += " or set model.gradient_checkpointing=true"
    activations, backward = _activation_bytes(config, shape, tokens), "backward pass"
    if where == "host":  # freed blocks of up to 32 MiB stay with the process (glibc's malloc)
        kept = min(KEPT_SHARE * activations, KEPT_GIB * GIB)
        parts.append(_part("activations", activations, remedy, where))
        parts.append(_part("allocator", kept, "", where))
    else:
        parts.append(_part("activations", activations, remedy, where, phase=backward))
    parts.append(_part("logits", _logits(shape, tokens), SMALLER_MODEL, where, phase=backward))
    if is_online(config):
        buckets = 2 * config.cluster.sync.bucket_mib * 2**20
        remedy = "lower cluster.sync.bucket_mib"
        parts.append(_part("sync buffers", buckets, remedy, where, phase="sync"))
    return tuple(parts)


def engine_parts(config: RunConfig, shape: ModelShape | None) -> tuple[Part, ...]:
    """Memory of one vLLM engine, its tensor-parallel processes together."""
    return _engine(config, shape, config.cluster.rollout.tensor_parallel_size, is_synced=True)


def reward_parts(
    config: RunConfig, shape: ModelShape | None, reward: RewardConfig
) -> tuple[Part, ...]:
    """Memory of one process of a named reward."""
    if reward.kind == "llm_judge":
        return _engine(config, shape, 1, is_synced=False)
    models, workers = frozen_models(reward), config.cluster.reward.num_workers
    if models == 0:
        return (Part(name="process", gib=RULE_GIB),)
    has_logits = reward.kind == "implicit"
    return _frozen(config, shape, "reward", workers, models, has_logits=has_logits)


def reference_parts(config: RunConfig, shape: ModelShape | None) -> tuple[Part, ...]:
    """Memory of one process of one reference policy."""
    workers = config.cluster.reference.num_workers
    return _frozen(config, shape, "reference", workers, 1, has_logits=True)


def _engine(
    config: RunConfig, shape: ModelShape | None, tensor_parallel: int, *, is_synced: bool
) -> tuple[Part, ...]:
    rollout, where = config.cluster.rollout, _device(config)
    several = "lower cluster.rollout.num_engines" if engine_count(config) > 1 else ""
    base = ENGINE_FRONT_GIB + ENGINE_CORE_GIB * tensor_parallel
    process = _process(config, base, "cluster.rollout.num_engines", engine_count(config))
    cache = rollout.kv_cache_gib * GIB
    parts = [*process, _part("KV cache", cache, "lower cluster.rollout.kv_cache_gib", where)]
    if where == "host":
        parts.append(Part(name="compiler", gib=COMPILER_GIB, phase="first start"))
    elif not rollout.enforce_eager:
        remedy = "set cluster.rollout.enforce_eager=true"
        parts.append(Part(name="CUDA graphs", gib=GRAPHS_GIB, remedy=remedy, where="gpu"))
    if shape is None:
        return tuple(parts)
    width = model_bytes(config)
    weights, head = shape.parameters * width, shape.embedding * width
    logits = 2 * 4 * rollout.max_num_seqs * shape.vocabulary  # and their log-probs
    parts += [
        _part("weights", weights, several or _narrower(config), where),
        _part("logits", logits, "lower cluster.rollout.max_num_seqs", where),
    ]
    bucket = config.cluster.sync.bucket_mib * 2**20
    remedy = "lower cluster.sync.bucket_mib"
    if where == "gpu":
        passing = PREFILL_TOKENS * (2 * shape.hidden + 2 * shape.intermediate) * width
        parts.append(_part("forward pass", passing, "", where))
        if is_synced:
            parts.append(_part("sync buffers", 2 * bucket, remedy, where))
        return tuple(parts)
    if shape.tied:  # the CPU kernels read a packed copy of the head
        parts.append(_part("packed head", head, _narrower(config), where))
    if is_synced:
        buffer = min(weights, max(bucket, head))
        parts += [
            _part("sync buffers", buffer, remedy, where, phase="sync"),
            _part("new weights", weights, _narrower(config), where, phase="sync"),
        ]
    return tuple(parts)


def _frozen(
    config: RunConfig,
    shape: ModelShape | None,
    role: Literal["reward", "reference"],
    workers: int,
    models: int,
    *,
    has_logits: bool,
) -> tuple[Part, ...]:
    """One process that holds its share of `models` frozen models."""
    process = _process(config, FROZEN_GIB, f"cluster.{role}.num_workers", workers)
    if shape is None:
        return tuple(process)
    where, width, tokens = _device(config), model_bytes(config), micro_batch_tokens(config)
    parameters = shape.parameters
    if where == "host" and not has_logits and workers == 1 and shape.dtype == config.model.dtype:
        # The weights are the file, mapped: of the embedding only rows that were read are there.
        parameters -= shape.embedding
    gathered = min(shape.parameters, LIVE_PARAMETERS) if workers > 1 else 0
    weights = (models * parameters / workers + gathered) * width
    forward = tokens * (4 * shape.hidden + 2 * shape.intermediate) * width  # one layer is alive
    parts = (
        *process,
        _part("weights", weights, _narrower(config), where),
        _part("forward pass", forward, "lower algorithm.tokens_per_micro_batch", where),
    )
    if not has_logits:
        return parts
    return (*parts, _part("logits", _logits(shape, tokens), SMALLER_MODEL, where))


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


def reward_workers(config: RunConfig, reward: RewardConfig) -> int:
    """Processes of one named reward: rules and LLM judges are never divided."""
    divided = reward.kind in MODEL_KINDS and reward.kind != "llm_judge"
    return config.cluster.reward.num_workers if divided else 1


def engine_count(config: RunConfig) -> int:
    """Engines at the most: of an elastic fleet, and the one that samples from the reference."""
    rollout = config.cluster.rollout
    return max(rollout.num_engines, rollout.max_engines or 0) + (
        config.data.source == "policy+reference"
    )


def _activation_bytes(config: RunConfig, shape: ModelShape, tokens: int) -> float:
    per_layer = shape.values_per_layer(config.model.dtype)
    if config.model.gradient_checkpointing:
        values = shape.layers * shape.hidden + 2 * per_layer  # inputs of all, the inside of one
    else:
        values = (shape.layers + 1) * per_layer  # one more: what the backward pass is making
    return tokens * values * model_bytes(config)


def _logits(shape: ModelShape, tokens: int) -> float:
    return LOGIT_COPIES * 4 * min(LOGIT_CHUNK, tokens) * shape.vocabulary


def micro_batch_tokens(config: RunConfig) -> int:
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


def model_bytes(config: RunConfig) -> int:
    """Bytes of one weight in forward passes and on the way to the engines."""
    return 2 if config.model.dtype == "bfloat16" else 4


def _device(config: RunConfig) -> Literal["host", "gpu"]:
    return "gpu" if config.cluster.device == "cuda" else "host"


def _narrower(config: RunConfig) -> str:
    return SMALLER_MODEL if config.model.dtype == "bfloat16" else "set model.dtype=bfloat16"


def _process(config: RunConfig, gib: float, setting: str, count: int) -> list[Part]:
    """The process itself, and what it takes of a GPU before anything is there."""
    parts = [Part(name="process", gib=gib, remedy=f"lower {setting}" if count > 1 else "")]
    if config.cluster.device == "cuda":
        parts.append(Part(name="CUDA context", gib=CUDA_CONTEXT_GIB, where="gpu"))
    return parts


def _part(
    name: str, size: float, remedy: str, where: Literal["host", "gpu"], phase: str = ""
) -> Part:
    return Part(name=name, gib=size / GIB, remedy=remedy, where=where, phase=phase)
