"""Learner steps on stored rows: imitation of demonstrations (SFT), and the reward model's pairs."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from actors.learner import Learner
from rl.batching import pad_tokens
from rl.logprobs import NextTokenLayout
from rl.losses.supervised import nll, pair_loss, pair_metrics, pair_sums
from rl.masking import masked_sum
from rl.types import Demonstration, Metrics, PreferencePair


class SupervisedObjective(Protocol):
    """A loss on stored rows."""

    def train(self, rows: Sequence) -> Metrics:
        """One learner step on this rank's rows."""
        ...

    def validate(self, rows: Sequence) -> Metrics:
        """Loss and accuracy on this rank's share of held-out rows; metrics over all ranks."""
        ...


class Imitation:
    """SFT: negative log-likelihood of the demonstrated reply, mean over all its tokens."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    def _layout(
        self, rows: Sequence[Demonstration]
    ) -> tuple[torch.Tensor, list[int], torch.Tensor]:
        """Tokens (B, T), lengths, and the mask (B, T) of the reply."""
        sequences = [np.concatenate([row.prompt.tokens, row.tokens]) for row in rows]
        tokens = pad_tokens(sequences, self.learner.pad_token_id)
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        for index, row in enumerate(rows):
            mask[index, len(row.prompt.tokens) : len(sequences[index])] = True
        return tokens, [len(sequence) for sequence in sequences], mask

    def train(self, rows: Sequence[Demonstration]) -> Metrics:
        """One learner step; `loss/nll` in nats per token."""
        tokens, lengths, mask = self._layout(rows)
        num_tokens = float(self.learner.reduce(mask.sum()))
        total = 0.0

        def loss(
            flat: torch.Tensor, _: torch.Tensor, layout: NextTokenLayout, chunk: Sequence[int]
        ) -> torch.Tensor:
            nonlocal total
            live = mask[list(chunk), : layout.shape[1]].to(flat.device)
            share = masked_sum(nll(layout.scatter(flat), live), live) / num_tokens
            total += float(share.detach())
            return share

        norm = self.learner.step("policy", tokens, lengths, mask, range(len(rows)), loss)
        metrics = {
            "loss/nll": float(self.learner.reduce(torch.tensor(total))),
            "grad_norm": norm,
            "num_tokens": num_tokens,
        }
        return _finish(self.learner, metrics)

    def validate(self, rows: Sequence[Demonstration]) -> Metrics:
        """`validation/loss` in nats per token."""
        tokens, lengths, mask = self._layout(rows)
        logprobs, _ = self.learner.logprobs(tokens, lengths, mask, 1.0)
        sums = torch.stack([masked_sum(-logprobs, mask).double(), mask.sum().double()])
        total, count = self.learner.reduce(sums).tolist()
        return {"validation/loss": total / count}


class PairRanking:
    """Bradley-Terry on the scores of two replies, read after the last token of each."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    def _layout(
        self, rows: Sequence[PreferencePair]
    ) -> tuple[torch.Tensor, list[int], torch.Tensor]:
        """Chosen and rejected rows in turn; the mask marks the place *after* each last token.

        The layout of next tokens reads the output one position before a marked one, so one column
        of padding follows every sequence.
        """
        sequences = [tokens for row in rows for tokens in (row.chosen_tokens, row.rejected_tokens)]
        pad = self.learner.pad_token_id
        tokens = pad_tokens([[*sequence, pad] for sequence in sequences], pad)
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        for index, sequence in enumerate(sequences):
            mask[index, len(sequence)] = True
        return tokens, [len(sequence) + 1 for sequence in sequences], mask

    def train(self, rows: Sequence[PreferencePair]) -> Metrics:
        """One learner step; accuracy and margin are of this batch, before the step."""
        tokens, lengths, mask = self._layout(rows)
        num_pairs = float(self.learner.reduce(torch.tensor(len(rows))))
        smoothing = self.learner.config.algorithm.label_smoothing
        total, sums = 0.0, torch.zeros(3, dtype=torch.float64)

        def loss(
            flat: torch.Tensor, _: torch.Tensor, layout: NextTokenLayout, chunk: Sequence[int]
        ) -> torch.Tensor:
            nonlocal total, sums
            chosen, rejected = flat.view(-1, 2).unbind(-1)
            share = pair_loss(chosen, rejected, smoothing).sum() / num_pairs
            total += float(share.detach())
            sums += pair_sums(chosen, rejected).cpu()
            return share

        norm = self.learner.step(
            "policy", tokens, lengths, mask, range(len(rows)), loss, unit_size=2
        )
        metrics = {
            "loss/bradley_terry": float(self.learner.reduce(torch.tensor(total))),
            "grad_norm": norm,
            "num_tokens": float(self.learner.reduce(torch.tensor(sum(lengths)))),
        }
        return _finish(self.learner, metrics | pair_metrics(self.learner.reduce(sums)))

    def scores(self, rows: Sequence[PreferencePair]) -> torch.Tensor:
        """(P, 2) scores of chosen and rejected replies; no gradient."""
        tokens, lengths, mask = self._layout(rows)
        values, _ = self.learner.logprobs(tokens, lengths, mask, 1.0)
        return values[mask].view(-1, 2)

    def validate(self, rows: Sequence[PreferencePair]) -> Metrics:
        """`validation/loss`, and the share of pairs in the right order."""
        chosen, rejected = self.scores(rows).unbind(-1)
        loss = pair_loss(chosen, rejected).sum().double()
        reduced = self.learner.reduce(
            torch.cat([pair_sums(chosen, rejected), loss[None], chosen.sum().double()[None]])
        )
        metrics = pair_metrics(reduced[:3])
        return {
            "validation/loss": float(reduced[3] / reduced[0]),
            "validation/pairs": float(reduced[0]),
            "validation/chosen_score": float(reduced[4] / reduced[0]),
            **{f"validation/{name}": value for name, value in metrics.items()},
        }


def objective(learner: Learner) -> SupervisedObjective:
    """The objective that `algorithm.name` stands for."""
    return Imitation(learner) if learner.config.algorithm.name == "sft" else PairRanking(learner)


def _finish(learner: Learner, metrics: Metrics) -> Metrics:
    settings = learner.config.algorithm.optimizer
    rate = settings.learning_rate * learner.learning_rate_factor(settings)
    learner.finish_step()
    return metrics | {"learning_rate": rate}
