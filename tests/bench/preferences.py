"""`python -m tests.bench.preferences PAIRS [llama|qwen3]`: a user's pairs and model, end to end.

Makes a small untrained model folder with a tokenizer of the pairs' own text, as a stand-in for the
user's, then uses public commands alone: SFT on the chosen replies, reward-model training on the
pairs, RLOO against it. Prints one JSON line with the held-out accuracy and its interval.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rl.data.layouts import read_examples
from rl.statistics import proportion_interval
from tests.bench.learning import attune

RECIPES = Path(__file__).parents[2] / "configs"
MAX_LENGTH = 512
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def write_model(folder: Path, pairs: Path, family: str) -> None:
    """A byte-level BPE of 4,096 tokens and a 4-layer model of 256 hidden units."""
    texts = [example.chosen or "" for example in read_examples(pairs, ("pairs",))]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=4096, special_tokens=SPECIAL, initial_alphabet=alphabet),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=SPECIAL[0], eos_token=SPECIAL[1],
        additional_special_tokens=SPECIAL[2:], chat_template=TEMPLATE,
    )  # fmt: skip
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 256, "intermediate_size": 688,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 64, "max_position_embeddings": MAX_LENGTH, "pad_token_id": 0,
        "eos_token_id": 1, "bos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(0)
    is_llama = family == "llama"
    model = (
        LlamaForCausalLM(LlamaConfig(**sizes))
        if is_llama
        else Qwen3ForCausalLM(Qwen3Config(**sizes))
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))


def small(model: Path, out: Path) -> list[str]:
    """What all stages set: this machine, this model."""
    return [
        f"model.path={model}", f"cluster.run_dir={out}", f"model.max_length={MAX_LENGTH}",
        "model.dtype=float32", "data.overlong=drop", "cluster.dashboard=false",
        "algorithm.tokens_per_micro_batch=4096",
        "cluster.learner.num_workers=1", "cluster.learner.cpus_per_worker=2",
    ]  # fmt: skip


def last_metrics(out: Path) -> dict[str, Any]:
    """Of the last step."""
    return json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])


def imitate(pairs: Path, model: Path, out: Path) -> dict[str, Any]:
    """SFT on the chosen replies; the few empty ones are left out, as a user would."""
    file = out.parent / "demonstrations.jsonl"
    rows = [
        {"messages": [*example.messages, {"role": "assistant", "content": example.chosen}]}
        for example in read_examples(pairs, ("pairs",))
        if (example.chosen or "").strip()
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    attune(
        "sft", str(RECIPES / "sft.yaml"), *small(model, out), f"data.train={file}",
        "data.prompts_per_step=32", "algorithm.num_steps=80",
        "algorithm.optimizer.learning_rate=1e-3", "algorithm.optimizer.warmup_steps=8",
    )  # fmt: skip
    return {"sft_validation_loss": round(last_metrics(out)["validation/loss"], 3)}


def train_reward_model(pairs: Path, model: Path, out: Path) -> dict[str, Any]:
    """Over one epoch of the pairs; held-out accuracy with its interval."""
    attune(
        "reward-model", str(RECIPES / "reward_model.yaml"), *small(model, out),
        f"data.train={pairs}", "data.validation_fraction=0.15",
        "data.prompts_per_step=32", "algorithm.num_steps=60",
        "algorithm.validation_interval=10", "algorithm.optimizer.learning_rate=3e-4",
        "algorithm.optimizer.warmup_steps=6",
    )  # fmt: skip
    last = last_metrics(out)
    count = round(last["validation/pairs"])
    interval = proportion_interval(round(last["validation/accuracy"] * count), count)
    return {
        "held_out_pairs": count,
        "accuracy": round(interval.mean, 4),
        "interval_95": [round(interval.low, 4), round(interval.high, 4)],
        "train_accuracy": round(last["accuracy"], 4),
    }


def align(pairs: Path, model: Path, judge: Path, out: Path) -> dict[str, Any]:
    """20 RLOO steps on the pairs' prompts against the reward model."""
    attune(
        "run", str(RECIPES / "rloo.yaml"), *small(model, out), f"data.train={pairs}",
        f"feedback.rewards.rm.path={judge}", "data.prompts_per_step=16",
        "data.samples_per_prompt=4", "data.sampling.max_new_tokens=64",
        "data.validation_prompts=64", "algorithm.num_steps=20",
        "algorithm.optimizer.learning_rate=2e-4", "algorithm.optimizer.warmup_steps=2",
        "cluster.rollout.num_engines=1", "cluster.rollout.cpus_per_engine=2",
    )  # fmt: skip
    summary = json.loads((out / "summary.json").read_text())
    return {
        "steps": summary["steps"],
        "reward_before": round(summary["reward_before"]["rm"], 4),
        "reward_after": round(summary["reward_after"]["rm"], 4),
        "standard_error": round(summary["reward_standard_error"]["rm"], 4),
        "kl_nats": round(summary["kl"], 3),
        "probe_gap_max": summary["probe_gap_max"],
    }


def main() -> None:
    """All stages in a temporary folder."""
    pairs, family = Path(sys.argv[1]).resolve(), (sys.argv[2:] or ["llama"])[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", pairs, family)
        figures = imitate(pairs, folder / "model", folder / "sft")
        policy = folder / "sft" / "policy"
        figures |= train_reward_model(pairs, policy, folder / "judge")
        figures |= align(pairs, policy, folder / "judge" / "policy", folder / "run")
    print(json.dumps({"benchmark": "preferences", "family": family, **figures}), flush=True)


if __name__ == "__main__":
    main()
