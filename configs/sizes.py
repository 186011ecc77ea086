"""How many parameters a config.json describes, without loading torch: for the memory plan."""

from collections.abc import Mapping
from typing import Any

_BIASES: dict[str, tuple[bool | None, bool | None]] = {
    "llama": (None, None),
    "mistral": (False, False),
    "qwen2": (True, False),
    "qwen3": (None, None),
}
"""Per model type: biases on query, key and value, and on the attention's output projection;
`None` where `attention_bias` of the config decides."""

_REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)


def count_parameters(config: Mapping[str, Any]) -> int:
    """Parameters of the model that a parsed config.json describes, tied embeddings counted once.

    Knows the dense decoders of the Llama, Mistral, Qwen2 and Qwen3 classes, with a language-model
    head or, as `architectures` says, a classification head. Raises `ValueError` for others.
    """
    model_type = config.get("model_type")
    if model_type not in _BIASES:
        known = ", ".join(_BIASES)
        raise ValueError(f"config.json: model_type {model_type} is not one of {known}: use one")
    if missing := [key for key in _REQUIRED if not isinstance(config.get(key), int)]:
        raise ValueError(f"config.json has no whole number {missing[0]}: save the model again")
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    body = config["num_hidden_layers"] * _layer(config, model_type) + hidden
    return vocabulary * hidden + body + _head(config)


def _layer(config: Mapping[str, Any], model_type: str) -> int:
    """One decoder layer: attention, gated MLP and the norms before them."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    key_heads = config.get("num_key_value_heads") or heads
    width = config.get("head_dim") or (128 if model_type == "qwen3" else hidden // heads)
    into, out = (heads + 2 * key_heads) * width, heads * width
    bias_into, bias_out = (
        bool(config.get("attention_bias")) if bias is None else bias for bias in _BIASES[model_type]
    )
    attention = hidden * (into + out) + bias_into * into + bias_out * hidden
    if model_type == "qwen3":
        attention += 2 * width  # norms of queries and keys
    mlp = 3 * hidden * inner
    if model_type == "llama" and config.get("mlp_bias"):
        mlp += 2 * inner + hidden
    return attention + mlp + 2 * hidden


def _head(config: Mapping[str, Any]) -> int:
    hidden = config["hidden_size"]
    if any("SequenceClassification" in name for name in config.get("architectures") or ()):
        return hidden * len(config.get("id2label") or (0, 1))  # two labels where none are named
    return 0 if config.get("tie_word_embeddings") else hidden * config["vocab_size"]
