"""One learner step of a preference method: judged groups in, an updated policy and metrics out.

    groups ─▶ scores ─▶ units (single replies, pairs or lists) ─▶ loss of whole replies ─▶ step

A unit is what one value of the loss compares. Its rows stand side by side in one micro-batch, so a
reply that is in several units is computed once for each. The maths is in `rl/`.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from actors.learner import Learner
from actors.scores import combined_scores
from configs.methods import ARITY
from rl.experience import PolicyBatch, build_batch
from rl.feedback.curation import curate
from rl.logprobs import NextTokenLayout
from rl.losses.pointwise import class_weights, estimate_c, mean_score
from rl.losses.references import mixed_reference
from rl.losses.replies import Replies
from rl.masking import masked_sum
from rl.methods import PreferenceLoss, preference_loss
from rl.pairing import first_drawn, group_rng, is_list, pairs
from rl.types import Experience, Metrics, Source

UNMOVED = 1e-4
"""Nats: below it, learner and reference differ by rounding alone, and a hit is chance."""
SUMS = (
    "units", "loss", "margin", "correct", "log_ratio", "replies", "explored",
    "own_replies", "own_log_ratio", "own_tokens",
)  # fmt: skip
"""What is added up over micro-batches and ranks: margins are of the best and the worst reply, `own`
replies are the policy's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Units:
    """What the loss compares, U units of K replies each."""

    rows: list[list[int]]
    """(U, K) rows of the batch. A rank without any unit holds one that it never learns from: it
    takes part in every gathering of weights."""
    count: int
    """Units to learn from: U, or 0."""
    explored: torch.Tensor
    """(U,) the column of the reply whose probability is to be lowered (SELM, XPO)."""

    @property
    def size(self) -> int:
        """K."""
        return len(self.rows[0])

    @property
    def flat(self) -> list[int]:
        """All rows of all units, side by side."""
        return [row for unit in self.rows for row in unit]


@dataclass(frozen=True, kw_only=True, eq=False)
class PreferenceTargets:
    """Constants of the update, and what it found out, for the record."""

    scores: torch.Tensor
    """(B,) after penalty, clip and normalisation."""
    logprobs: torch.Tensor
    """(B, T) when the loss first read them; 0 for replies that no unit held."""


def update_preference(
    learner: Learner, experiences: Sequence[Experience]
) -> tuple[Metrics, PolicyBatch, PreferenceTargets]:
    """One learner step on this rank's groups; metrics are the same on every rank."""
    batch = build_batch(experiences, learner.pad_token_id)
    scores, metrics = combined_scores(learner, batch)
    update = PreferenceUpdate(learner, batch, experiences, scores)
    metrics |= update.run()
    learner.finish_step()
    targets = PreferenceTargets(scores=scores, logprobs=update.logprobs)
    return metrics, batch, targets


class PreferenceUpdate:
    """The optimizer steps of one learner step."""

    def __init__(
        self,
        learner: Learner,
        batch: PolicyBatch,
        experiences: Sequence[Experience],
        scores: torch.Tensor,
    ) -> None:
        self.learner, self.batch, self.scores = learner, batch, scores
        self.settings = learner.config.algorithm
        assert self.settings.loss.name is not None
        self.loss: PreferenceLoss = preference_loss(self.settings.loss.name)
        self.sources: list[Source] = [r.source for e in experiences for r in e.rollouts]
        self.is_own = torch.tensor([source == "policy" for source in self.sources])
        self.is_demo = torch.tensor([r.is_demo for e in experiences for r in e.rollouts])
        self.lengths = batch.response_mask.sum(-1).float()
        self.reference = masked_sum(batch.ref_logprobs, batch.response_mask, dim=-1)
        self.extra_references = torch.tensor(
            [
                [value for e in experiences for value in e.extra_references[index]]
                for index in range(len(experiences[0].extra_references))
            ]
        )  # (M, B), or empty
        self.num_pairs = 0
        """Before curation."""
        is_reference = torch.tensor([source == "reference" for source in self.sources])
        groups = [torch.tensor(rows) for rows in batch.group_rows]
        self.c: torch.Tensor | None = None
        """(B,) beta log Z of each reply's prompt, where it is estimated."""
        if self.settings.loss.c == "estimated":
            assert self.settings.loss.beta is not None
            estimate = partial(estimate_c, beta=self.settings.loss.beta)
            self.c = of_reference(estimate, scores, is_reference, groups)
        if self.settings.loss.centred:
            self.scores = scores - of_reference(mean_score, scores, is_reference, groups)
        self.units = self._make_units(experiences)
        self.extras: dict[str, Any] = self.settings.loss.parameters()
        if "baseline" in self.loss.needs:
            self.extras["baseline"] = torch.tensor(self._baseline(experiences))
        self.logprobs = torch.zeros_like(batch.ref_logprobs)
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64)
        self.num_units = self.num_positive = 0.0
        self.is_first_epoch = True

    # ---- what is compared ------------------------------------------------------------------

    def _make_units(self, experiences: Sequence[Experience]) -> Units:
        rows: list[list[int]] = []
        for experience, group in zip(experiences, self.batch.group_rows, strict=True):
            texts = [rollout.text for rollout in experience.rollouts]
            rng = group_rng(self.learner.config.data.seed, experience.group_id)
            rows += self._units_of(group, texts, rng)
        count = len(rows)
        rows = rows or [self._filler()]
        return Units(rows=rows, count=count, explored=self._explored(rows))

    def _units_of(
        self, group: list[int], texts: Sequence[str], rng: random.Random
    ) -> list[list[int]]:
        """Units of one group, as rows of the batch."""
        scores = self.scores[group].tolist()
        match self.learner.config.data.pairing:
            case "single":
                return [[row] for row in group]
            case "group":
                return [group] if is_list(scores, texts) else []
            case pairing:
                assert pairing != "none", "configs.preference_checks refuses it"
                found = self._curated(
                    [[group[a], group[b]] for a, b in pairs(scores, texts, pairing, rng)]
                )
                if "explored" not in self.loss.needs:
                    return found
                # A reply that is in neither place of the pair is still explored (SELM, step 4).
                return [[*pair, *(row for row in group if row not in pair)] for pair in found]

    def _curated(self, found: list[list[int]]) -> list[list[int]]:
        """The pairs (chosen row, rejected row) that the curating reward agrees with."""
        feedback = self.learner.config.feedback
        self.num_pairs += len(found)
        if feedback.curate_by is None or not found:
            return found
        proxy = self.batch.rewards[feedback.curate_by]
        chosen, rejected = proxy[torch.tensor(found)].unbind(-1)
        kept = curate(chosen, rejected, feedback.curate_margin).is_kept.tolist()
        return [pair for pair, is_kept in zip(found, kept, strict=True) if is_kept]

    def _filler(self) -> list[int]:
        group = self.batch.group_rows[0]
        arity = ARITY[self.learner.config.data.pairing]
        if arity == "list" or "explored" in self.loss.needs:
            return group
        return (group * 2)[: 1 if arity == "point" else 2]

    def _explored(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Column of the reply that is made less likely: the policy's (SELM) or the reference's."""
        wanted: Source = "reference" if "reference" in self.sources else "policy"
        return torch.tensor([first_drawn(unit, self.sources, wanted) for unit in rows])

    def _baseline(self, experiences: Sequence[Experience]) -> float:
        """KTO's z: mean log-ratio of replies behind other prompts, over all ranks, not below 0."""
        others = [e.mismatched for e in experiences if e.mismatched is not None]
        batch = build_batch(others, self.learner.pad_token_id)
        temperature = self.learner.config.data.sampling.temperature
        mask = batch.response_mask
        logprobs, _ = self.learner.logprobs(batch.tokens, batch.lengths, mask, temperature)
        ratios = masked_sum(logprobs - batch.ref_logprobs, mask, dim=-1)
        sums = torch.tensor([float(ratios.sum()), len(ratios)], dtype=torch.float64)
        total, count = self.learner.reduce(sums).tolist()
        return max(0.0, total / count)

    # ---- the optimizer steps ---------------------------------------------------------------

    def run(self) -> Metrics:
        """All epochs and minibatches; metrics are means over the optimizer steps' units."""
        learner, algorithm = self.learner, self.settings
        norm, num_steps = 0.0, 0
        for epoch in range(algorithm.num_epochs):
            self.is_first_epoch = epoch == 0
            for units in self._minibatches(epoch):
                positive = self._is_positive(units).sum() if units else torch.tensor(0)
                counts = torch.stack([torch.tensor(len(units)), positive])
                self.num_units, self.num_positive = map(float, learner.reduce(counts).tolist())
                if self.num_units == 0:  # nothing could be told apart, on no rank
                    continue
                norm += self._step(units)
                num_steps += 1
        metrics = self._metrics(learner.reduce(self.sums))
        rate = algorithm.optimizer.learning_rate
        return metrics | {
            "grad_norm": norm / max(num_steps, 1),
            "learning_rate": rate * learner.learning_rate_factor(algorithm.optimizer),
        }

    def _minibatches(self, epoch: int) -> list[list[int]]:
        parts = self.settings.num_minibatches
        seed = f"{self.learner.config.data.seed}-{self.learner.state.version}-{epoch}"
        order = list(range(self.units.count))
        if parts > 1:
            random.Random(seed).shuffle(order)
        return [order[index::parts] for index in range(parts)]

    def _step(self, units: list[int]) -> float:
        batch, flat, size = self.batch, self.units.flat, self.units.size
        return self.learner.step(
            "policy",
            batch.tokens[flat],
            [batch.lengths[row] for row in flat],
            batch.response_mask[flat],
            units,
            self._loss,
            temperature=self.learner.config.data.sampling.temperature,
            unit_size=size,
        )

    def _loss(
        self,
        flat: torch.Tensor,
        entropy: torch.Tensor,
        layout: NextTokenLayout,
        chunk: Sequence[int],
    ) -> torch.Tensor:
        """This micro-batch's share of the loss; `chunk` are rows of the laid-out units."""
        size, units = self.units.size, [row // self.units.size for row in chunk[:: self.units.size]]
        rows = [self.units.flat[row] for row in chunk]
        logprobs = layout.scatter(flat)
        mask = self.batch.response_mask[rows, : layout.shape[1]].to(flat.device)
        shape = (len(units), size)
        replies = Replies(
            logprobs=masked_sum(logprobs, mask, dim=-1).view(shape),
            ref_logprobs=self._reference_of(rows, shape).to(flat.device),
            lengths=self.lengths[rows].view(shape).to(flat.device),
            scores=self.scores[rows].view(shape).to(flat.device),
            is_demo=self.is_demo[rows].view(shape).to(flat.device),
        )
        explored = self.units.explored[units].to(flat.device)
        extras = self.extras | ({"explored": explored} if "explored" in self.loss.needs else {})
        if self.c is not None:
            extras["c"] = self.c[rows].view(shape).to(flat.device)
        values = self.loss.function(replies, **extras)
        values = values[:, 0] if values.dim() == 2 else values  # a point-wise unit is one reply
        loss = (values * self._weights(units).to(values.device)).sum()
        is_own = self.is_own[rows].view(shape).to(flat.device)
        self._record(replies, values.detach(), explored, is_own)
        if self.is_first_epoch:
            self.logprobs[rows, : layout.shape[1]] = logprobs.detach().cpu()
        return loss

    def _reference_of(self, rows: list[int], shape: tuple[int, int]) -> torch.Tensor:
        """(U, K) log-probs under the reference, or under the virtual one that several make."""
        base = self.reference[rows].view(shape)
        if not len(self.extra_references):
            return base
        model = self.learner.config.model
        return mixed_reference(
            self.extra_references[:, rows].view(-1, *shape),
            base,
            is_by_confidence=model.reference_weights == "confidence",
            clip=model.reference_clip,
        )

    def _weights(self, units: Sequence[int]) -> torch.Tensor:
        """(U,) what each unit's loss counts in the step: a mean over all, or over two classes."""
        if self.settings.loss.reduction != "class_balanced":
            return torch.full((len(units),), 1 / self.num_units)
        is_positive = self._is_positive(units)
        return class_weights(
            is_positive,
            "class_balanced",
            num_positive=self.num_positive,
            num_negative=self.num_units - self.num_positive,
        )

    def _is_positive(self, units: Sequence[int]) -> torch.Tensor:
        """(U,) bool: demonstrations, and replies that people liked."""
        rows = [self.units.rows[unit][0] for unit in units]
        return self.is_demo[rows] | (self.scores[rows] > 0.5)

    # ---- the record ------------------------------------------------------------------------

    @torch.no_grad()
    def _record(
        self,
        replies: Replies,
        values: torch.Tensor,
        explored: torch.Tensor,
        is_own: torch.Tensor,
    ) -> None:
        ratios = replies.log_ratios.detach()
        best = replies.scores.argmax(-1, keepdim=True)
        worst = replies.scores.argmin(-1, keepdim=True)
        margin = (ratios.gather(1, best) - ratios.gather(1, worst))[:, 0]
        column = explored[:, None].clamp(max=ratios.shape[1] - 1)
        parts = [
            torch.tensor(len(values)),
            values.sum(),
            margin.sum(),
            (margin > UNMOVED).sum() + 0.5 * (margin.abs() <= UNMOVED).sum(),
            ratios.sum(),
            torch.tensor(ratios.numel()),
            ratios.gather(1, column).sum(),
            is_own.sum(),
            ratios[is_own].sum(),
            replies.lengths[is_own].sum(),
        ]
        self.sums += torch.stack([part.double().cpu() for part in parts])

    def _metrics(self, reduced: torch.Tensor) -> Metrics:
        total = dict(zip(SUMS, reduced.tolist(), strict=True))
        units, replies = max(total["units"], 1.0), max(total["replies"], 1.0)
        groups = float(self.learner.reduce(torch.tensor(len(self.batch.group_rows))))
        metrics = {
            "loss/preference": total["loss"] / units,
            "units": total["units"] / self.settings.num_epochs,
            "groups": groups,
            "preference/log_ratio": total["log_ratio"] / replies,
            "num_tokens": float(self.learner.reduce(self.batch.response_mask.sum().double())),
        }
        if self.units.size > 1:
            metrics |= {
                "preference/margin": total["margin"] / units,
                "preference/accuracy": total["correct"] / units,
            }
        if self.learner.config.feedback.curate_by is not None:
            made = float(self.learner.reduce(torch.tensor(self.num_pairs)))
            kept = float(self.learner.reduce(torch.tensor(self.units.count)))
            metrics["feedback/kept_fraction"] = kept / max(made, 1.0)
        if own := total["own_replies"]:  # of stored replies neither would speak of the policy
            metrics |= {
                "kl/ref_k1": total["own_log_ratio"] / own,
                "length/mean": total["own_tokens"] / own,
                **self._endings(),
            }
        if "explored" in self.loss.needs:
            metrics["preference/explored_log_ratio"] = total["explored"] / units
        return metrics

    def _endings(self) -> Metrics:
        """How the policy's own replies ended, over all ranks' batches."""
        counts = torch.stack([(self.batch.finished & self.is_own).sum(), self.is_own.sum()])
        num_finished, num_own = self.learner.reduce(counts.double()).tolist()
        longest = int((self.lengths * self.is_own).max())
        return {
            "eos_rate": num_finished / max(num_own, 1.0),
            "length/max": float(self.learner.maximum(longest)),
        }


def of_reference(
    statistic: Callable[[torch.Tensor], torch.Tensor],
    scores: torch.Tensor,
    is_reference: torch.Tensor,
    groups: Sequence[torch.Tensor],
) -> torch.Tensor:
    """(B,): a statistic (1, M) -> (1, 1) of the scores of the reference's replies to a prompt.

    `groups` are the rows of each prompt's replies, M of which are the reference's.
    """
    found = torch.zeros_like(scores)
    for rows in groups:
        found[rows] = statistic(scores[rows[is_reference[rows]]][None]).item()
    return found
