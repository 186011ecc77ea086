"""A language model on real vLLM that judges pairs, inside a reward actor."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from cluster.scoring import merge_scores, reward_groups
from configs.load import load_config
from rl.types import Prompt, Rollout, VersionSpan
from tests.integration import toy

A, B = 126, 127
LAYOUT = "w10 {prompt} w11 {first} w12 {second} w13"


def write_llm(folder: Path) -> Path:
    """Says A or B more often than anything else: its other words are all equally likely."""
    torch.manual_seed(5)
    model = Qwen3ForCausalLM(Qwen3Config(**toy.SHAPE, tie_word_embeddings=False))
    direction = 0.3 * torch.randn(toy.SHAPE["hidden_size"])
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[A], model.lm_head.weight[B] = direction, -direction
    model.save_pretrained(folder)
    tokenizer = toy.tokenizer()
    state = tokenizer.backend_tokenizer.to_str().replace('"w126"', '"A"').replace('"w127"', '"B"')
    PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(state),
        pad_token="<pad>",
        eos_token="<eos>",
        chat_template=tokenizer.chat_template,
    ).save_pretrained(str(folder))
    return folder


def rollout(group_id: int, text: str) -> Rollout:
    return Rollout(
        group_id=group_id,
        sample=0,
        prompt=Prompt(row=group_id, text="w5 w6", tokens=(9,), extra={}),
        tokens=np.array([6, 1], np.int32),
        text=text,
        rollout_logprobs=np.zeros(2, np.float32),
        versions=(VersionSpan(version=0, start=0, end=2),),
        finish_reason="stop",
        seed=0,
        engine="engine-0",
    )


def plain_odds(folder: Path, first: str, second: str) -> float:
    """p(A) / (p(A) + p(B)) as plain transformers has it."""
    words = f"w10 w5 w6 w11 {first} w12 {second} w13".split()
    tokens = [2, *(int(word[1:]) for word in words), 3]
    with torch.no_grad():
        logits = toy.load_policy(folder)(input_ids=torch.tensor([tokens])).logits[0, -1]
    return float((logits[A] - logits[B]).double().sigmoid())


@pytest.mark.slow
def test_a_language_model_judges_pairs_in_both_orders(ray_cluster: None, tmp_path: Path) -> None:
    folder = write_llm(tmp_path / "llm")
    (tmp_path / "question.txt").write_text(LAYOUT)
    shared = f"kind: llm_judge, path: {folder}, prompt_file: {tmp_path / 'question.txt'}"
    base: dict[str, Any] = {
        "model": {"path": str(folder), "max_length": 64},
        "data": {"train": "unused", "samples_per_prompt": 3, "sampling": {"max_new_tokens": 16}},
        "algorithm": {"name": "rloo", "num_steps": 1},
        "cluster": {"run_dir": str(tmp_path / "run"), "rollout": {"kv_cache_gib": 0.05}},
    }
    config = load_config(
        None,
        [
            f"feedback.rewards.odds={{{shared}}}",
            f"feedback.rewards.words={{{shared}, verdict: text, verdict_tokens: 4}}",
            "feedback.attempts=1",
        ],
        base=base,
    )
    texts = ["w20 w21 w22", "w30", "w40 w41"]
    rollouts = [*(rollout(0, text) for text in texts), rollout(1, "w7"), rollout(1, "w7")]
    unlike = [replace(rollouts[0], text="w50"), replace(rollouts[0], text="w20 " * 130)]

    async def ask() -> tuple[dict[str, tuple[float, ...]], list[str]]:
        groups = reward_groups(config)
        scores = merge_scores(await groups["odds"].score(rollouts))
        told = []
        for name, asked in (("words", rollouts), ("odds", unlike)):
            with pytest.raises(RuntimeError) as failure:
                await groups[name].score(asked)
            told.append(str(failure.value))
        return scores, told

    scores, (no_verdict, too_long) = asyncio.run(ask())
    odds = {
        (i, j): plain_odds(folder, x, y) for i, x in enumerate(texts) for j, y in enumerate(texts)
    }
    wins = {(i, j): (odds[i, j] + 1 - odds[j, i]) / 2 for i, j in odds}
    expected = [sum(wins[i, j] for j in range(3) if j != i) / 2 for i in range(3)]
    print(f"MEASURED judge: {scores['odds']} beside {expected}")
    assert max(abs(odds[i, j] - 0.5) for i, j in odds) > 0.1, "a judge without a view"
    assert np.ptp(expected) > 0.01
    assert scores["odds"][:3] == pytest.approx(expected, abs=1e-3)
    assert scores["odds"][3:] == (0.5, 0.5)
    # What it writes is A or B without brackets: no verdict, and so no score.
    assert "reward words: no verdict A, B or tie in the judge's answer ending" in no_verdict
    assert "are more than the judge's 128: lower data.max_prompt_length" in too_long
