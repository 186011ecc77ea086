import json
from typing import Any

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from configs.sizes import count_parameters

# Every width differs from the others, so no term of the count can stand in for another.
SMALL: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "vocab_size": 101,
}


def _saved(model, folder) -> dict:
    model.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL),
        LlamaConfig(**SMALL, tie_word_embeddings=True),
        LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True),
        MistralConfig(**SMALL, head_dim=10),
        Qwen2Config(**SMALL),
        Qwen2Config(**SMALL, tie_word_embeddings=True),
        Qwen3Config(**SMALL),
        Qwen3Config(**SMALL, head_dim=10, tie_word_embeddings=True),
        Qwen3Config(**SMALL, head_dim=10, attention_bias=True),
    ],
    ids=lambda config: config.model_type,
)
@pytest.mark.parametrize("kind", [AutoModelForCausalLM, AutoModelForSequenceClassification])
def test_the_count_is_that_of_the_real_model(tmp_path, config: PreTrainedConfig, kind):
    model = kind.from_config(config)
    counted = count_parameters(_saved(model, tmp_path))
    assert counted == sum(parameter.numel() for parameter in model.parameters())


def test_a_published_model_has_the_size_on_its_card():
    # Qwen2.5-0.5B: its card says 0.49 billion, 0.36 billion without embeddings.
    config = {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "vocab_size": 151936,
    }
    assert count_parameters(config) == 494_032_768
    assert count_parameters(config) - 896 * 151936 == pytest.approx(0.36e9, rel=0.01)


def test_configs_that_cannot_be_counted_are_refused():
    with pytest.raises(ValueError, match="model_type gpt2 is not one of llama, mistral"):
        count_parameters({"model_type": "gpt2"})
    with pytest.raises(ValueError, match="no whole number vocab_size"):
        count_parameters({"model_type": "llama", **SMALL, "vocab_size": None})
