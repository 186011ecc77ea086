"""Tiny models, and experiences, demonstrations and pairs in random tokens, for the test process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

from configs.load import load_config, merge
from configs.schema import RunConfig
from rl.types import Demonstration, Experience, PreferencePair, Prompt, Rollout, VersionSpan

VOCABULARY = 128
PAD, EOS = 0, 1
MAX_LENGTH = 32
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "initializer_range": 0.125,  # of size 1 / sqrt(hidden): log-probs differ by nats, not by 0.01
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "dtype": "float32",
}


def write_policy(folder: Path, family: str, *, tied: bool) -> None:
    """A causal language model with random weights and its tokenizer."""
    torch.manual_seed(0)
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=tied))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=tied))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(str(folder))


def write_judge(folder: Path) -> None:
    """A reward model with random weights, other ones than the policies', and its tokenizer."""
    torch.manual_seed(1)
    settings: dict[str, Any] = SHAPE | {"num_labels": 1}
    Qwen3ForSequenceClassification(Qwen3Config(**settings)).save_pretrained(folder)
    tokenizer().save_pretrained(str(folder))


def tokenizer() -> PreTrainedTokenizerFast:
    """Words `w4` to `w127`, one token each; id 0 pads, 1 ends, 2 and 3 open the turns."""
    special = ["<pad>", "<eos>", "<user>", "<assistant>"]
    words = {word: index for index, word in enumerate(special)}
    words |= {f"w{index}": index for index in range(len(special), VOCABULARY)}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=(
            "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] }}"
            "{% if m['role'] == 'assistant' %}{{ ' <eos>' }}{% else %}{{ ' ' }}{% endif %}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
        ),
    )


def run_config(
    method: str, model: Path, settings: dict[str, Any] | None = None, *, num_workers: int = 1
) -> RunConfig:
    """A configuration with every parameter partitioned over the ranks."""
    base: dict[str, Any] = {
        "model": {"path": str(model), "max_length": MAX_LENGTH},
        "data": {"train": "unused", "prompts_per_step": 8},
        "algorithm": {
            "name": method,
            "num_steps": 10,
            "optimizer": {"learning_rate": 1e-3, "max_grad_norm": None},
        },
        "cluster": {
            "run_dir": "unused",
            "learner": {"num_workers": num_workers, "persistence_threshold": 0},
        },
    }
    if method in ("rloo", "ppo"):
        base["data"] |= {"samples_per_prompt": 2, "sampling": {"max_new_tokens": 16}}
        base["feedback"] = {
            "rewards": {
                "helpful": {"kind": "gold"},
                "style": {"kind": "function", "path": "unused.py", "weight": 0.5},
            }
        }
    return load_config(None, base=merge(base, settings or {}))


def token_logprobs(
    model: PreTrainedModel, tokens: Sequence[int], temperature: float = 1.0
) -> torch.Tensor:
    """(n,): log-probs of each token after the ones before it, 0 for the first; nothing padded."""
    ids = torch.tensor(tokens)
    logits = model(input_ids=ids[None]).logits[0].float() / temperature
    chosen = logits[:-1].log_softmax(-1).gather(-1, ids[1:, None]).squeeze(-1)
    return torch.cat([torch.zeros(1), chosen])


def load_policy(folder: Path | str) -> PreTrainedModel:
    """The folder as plain transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def experiences(
    folder: Path, group_sizes: Sequence[int], *, seed: int = 0, noise: float = 0.05
) -> list[Experience]:
    """Groups of random replies of 1 to 16 tokens behind prompts of 2 to 12.

    The sampler's log-probs are the policy's own plus `noise`, the reference's those plus 0.3.
    """
    rng = np.random.default_rng(seed)
    model = load_policy(folder)
    return [_group(model, rng, index, size, noise) for index, size in enumerate(group_sizes)]


def _group(
    model: PreTrainedModel, rng: np.random.Generator, group_id: int, size: int, noise: float
) -> Experience:
    prompt = _prompt(rng, group_id)
    rollouts, references = [], []
    for sample in range(size):
        tokens = rng.integers(4, VOCABULARY, size=rng.integers(1, 17)).astype(np.int32)
        finished = bool(rng.random() < 0.7)
        if finished:
            tokens[-1] = EOS
        with torch.no_grad():
            own = token_logprobs(model, [*prompt.tokens, *tokens])[len(prompt.tokens) :].numpy()
        references.append((own + 0.3 * rng.standard_normal(len(own))).astype(np.float32))
        rollouts.append(
            Rollout(
                group_id=group_id,
                sample=sample,
                prompt=prompt,
                tokens=tokens,
                text=" ".join(f"w{token}" for token in tokens if token != EOS),
                rollout_logprobs=(own + noise * rng.standard_normal(len(own))).astype(np.float32),
                versions=(VersionSpan(version=0, start=0, end=len(tokens)),),
                finish_reason="stop" if finished else "length",
                seed=int(rng.integers(1000)),
                engine="engine-0",
            )
        )
    helpful = tuple(rng.standard_normal(size).tolist())
    return Experience(
        rollouts=tuple(rollouts),
        rewards={
            "helpful": helpful,
            "helpful/tone": tuple(rng.random(size).tolist()),
            "style": tuple(rng.random(size).tolist()),
        },
        ref_logprobs=tuple(references),
        attempts=1,
    )


def _prompt(rng: np.random.Generator, row: int) -> Prompt:
    tokens = rng.integers(4, VOCABULARY, size=rng.integers(2, 13)).tolist()
    text = " ".join(f"w{token}" for token in tokens)
    return Prompt(row=row, text=text, tokens=tuple(tokens), extra={"row": row})


def demonstrations(count: int, *, seed: int = 0) -> list[Demonstration]:
    """Replies of 2 to 16 tokens, each the prompt's last token again and again, then EOS."""
    rng = np.random.default_rng(seed)
    rows = []
    for row in range(count):
        prompt = _prompt(rng, row)
        tokens = (*[prompt.tokens[-1]] * int(rng.integers(1, 16)), EOS)
        text = " ".join(f"w{token}" for token in tokens[:-1])
        rows.append(Demonstration(prompt=prompt, text=text, tokens=tokens))
    return rows


def pairs(count: int, *, seed: int = 0) -> list[PreferencePair]:
    """Pairs whose better reply holds tokens below 64 and whose worse one tokens from 64 on."""
    rng = np.random.default_rng(seed)
    rows = []
    for row in range(count):
        prompt = _prompt(rng, row)
        good = rng.integers(4, 64, size=rng.integers(1, 16)).tolist()
        bad = rng.integers(64, VOCABULARY, size=rng.integers(1, 16)).tolist()
        rows.append(
            PreferencePair(
                prompt=prompt,
                chosen=" ".join(f"w{token}" for token in good),
                rejected=" ".join(f"w{token}" for token in bad),
                chosen_tokens=(*prompt.tokens, *good, EOS),
                rejected_tokens=(*prompt.tokens, *bad, EOS),
            )
        )
    return rows
