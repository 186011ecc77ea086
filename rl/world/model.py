"""Tokenizer and untrained policy of the built-in world, written as a Hugging Face folder."""

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rl.world.grammar import vocabulary

PAD, EOS, BOS, UNK = "<|pad|>", "<|eos|>", "<|bos|>", "<|unk|>"
ROLES = ("system", "user", "assistant")
SPECIAL = (PAD, EOS, BOS, UNK, *(f"<|{role}|>" for role in ROLES))
"""Their ids are their positions here."""
MAX_LENGTH = 256
"""Positions of the policy."""
INITIALIZER_RANGE = 0.08
"""About hidden_size ** -0.5. With the usual 0.02 a model this narrow learns to copy the place from
the request only after many hundred steps; with this, after one hundred."""
VOCAB_MULTIPLE = 16
"""The embedding is padded so that it splits evenly over tensor-parallel ranks."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the world, and one per mark; unknown words become `<|unk|>`.

    A word's token carries the space before it, so texts of the world come back unchanged.
    """
    marks = set(".,!?:")
    tokens = [*SPECIAL, *(word if word in marks else "▁" + word for word in vocabulary())]
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(Regex(r"[.,!?:]"), behavior="isolated"),
        ]
    )
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=BOS,
        unk_token=UNK,
        additional_special_tokens=[*SPECIAL[-len(ROLES) :]],
        model_max_length=MAX_LENGTH,
        padding_side="right",
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int = 0,
    hidden_size: int = 128,
    num_layers: int = 3,
) -> Qwen3ForCausalLM:
    """A float32 Qwen3 with tied embeddings and random weights (0.6 M parameters by default).

    Two key-value heads allow tensor parallelism of 2; heads of 32 are the smallest vLLM serves.
    """
    config = Qwen3Config(
        vocab_size=-len(tokenizer) // VOCAB_MULTIPLE * -VOCAB_MULTIPLE,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        initializer_range=INITIALIZER_RANGE,
        use_cache=True,
        dtype="float32",
        pad_token_id=SPECIAL.index(PAD),
        eos_token_id=SPECIAL.index(EOS),
        bos_token_id=SPECIAL.index(BOS),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def write_model(
    folder: str | Path, *, seed: int = 0, hidden_size: int = 128, num_layers: int = 3
) -> None:
    """Write config, safetensors and tokenizer of an untrained policy into `folder`.

    The folder loads with `AutoModelForCausalLM` and `AutoTokenizer`. Same seed, same weights.
    """
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed=seed, hidden_size=hidden_size, num_layers=num_layers)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
