"""Learning from stored rows: demonstrations are imitated, pairs are ranked."""

import numpy as np
import pytest
import torch

from rl.types import PreferencePair, Prompt
from tests.integration import learning, toy


def shared(rows: list, num_workers: int) -> list[list]:
    """Rows dealt out to the ranks."""
    return [rows[rank::num_workers] for rank in range(num_workers)]


def test_the_loss_of_imitation_falls(model_folder, two_ranks):
    settings = {"algorithm": {"optimizer": {"learning_rate": 3e-3}}}
    config = toy.run_config("sft", model_folder("qwen3", tied=True), settings, num_workers=2)
    steps = [shared(toy.demonstrations(16, seed=seed), 2) for seed in range(30)]
    held_out = toy.demonstrations(16, seed=99)
    *metrics, before, after = two_ranks.run(
        learning.supervised_run, config, steps, [held_out[:5], held_out[5:]]
    )[0]
    print("MEASURED sft", metrics[0]["loss/nll"], metrics[-1]["loss/nll"], before, after)
    assert metrics[-1]["loss/nll"] < 0.7 * metrics[0]["loss/nll"]
    assert after["validation/loss"] < 0.7 * before["validation/loss"]

    model = toy.load_policy(model_folder("qwen3", tied=True))
    with torch.no_grad():
        logprobs = [
            toy.token_logprobs(model, [*row.prompt.tokens, *row.tokens])[len(row.prompt.tokens) :]
            for row in held_out
        ]
    plain = -float(torch.cat(logprobs).mean())
    assert before["validation/loss"] == pytest.approx(plain, rel=1e-5)


def test_a_reward_model_learns_to_rank_separable_pairs(model_folder, two_ranks):
    settings = {"algorithm": {"optimizer": {"learning_rate": 1e-3}}}
    folder = model_folder("qwen3", tied=True)
    config = toy.run_config("reward_model", folder, settings, num_workers=2)
    steps = [shared(toy.pairs(16, seed=seed), 2) for seed in range(20)]
    held_out = toy.pairs(40, seed=99)
    *metrics, before, after = two_ranks.run(
        learning.supervised_run, config, steps, [held_out[:15], held_out[15:]]
    )[0]
    print("MEASURED rm", before, after, [round(m["accuracy"], 2) for m in metrics])
    assert before["validation/accuracy"] < 0.8
    assert after["validation/accuracy"] > 0.9
    assert after["validation/loss"] < before["validation/loss"]
    assert metrics[-1]["margin"] > 1


def test_a_score_is_read_after_the_last_token_whatever_follows(model_folder, one_rank):
    """A short pair scores the same alone and beside one that makes most of its row padding."""
    folder = model_folder("qwen3", tied=True)
    config = toy.run_config("reward_model", folder)
    prompt = Prompt(row=0, text="w4", tokens=(4,), extra={})
    short = pair(prompt, (5, 6, toy.EOS), (7, toy.EOS))
    long = pair(prompt, (*range(10, 40), toy.EOS), (*range(50, 80), toy.EOS))
    ends_with_padding = pair(prompt, (5, 6, toy.EOS, toy.PAD), (7, toy.EOS, toy.PAD))
    batches = [[[short]], [[short, long]], [[ends_with_padding]]]
    alone, beside, padded = one_rank.run(learning.scores_of_pairs, config, batches)[0]
    assert beside[0] == pytest.approx(alone[0], abs=1e-6)
    # What is part of a reply counts, also a token that elsewhere pads: only the length decides.
    assert np.abs(padded[0] - alone[0]).min() > 1e-3


def pair(prompt: Prompt, chosen: tuple[int, ...], rejected: tuple[int, ...]) -> PreferencePair:
    """A pair of replies given by tokens."""
    return PreferencePair(
        prompt=prompt,
        chosen="chosen",
        rejected="rejected",
        chosen_tokens=(*prompt.tokens, *chosen),
        rejected_tokens=(*prompt.tokens, *rejected),
    )
