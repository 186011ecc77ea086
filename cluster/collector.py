"""The collecting loop: prompts in, scored experiences out, as far ahead as staleness allows.

    lease ─▶ fleet.generate ─▶ rewards ∥ reference ─▶ experience ─▶ batch of step s ─▶ learner
      ▲                                                                  │
      └──── admission: version ≥ s - 1 - max_staleness ◀── advance(v) ───┘

One Ray actor runs it. Step s learns from the groups leased for it and from no others, so every
group is used once; the learner pulls batches and reports versions, nobody sends it commands.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import ray

from actors.rollout import SampleRequest
from cluster.evaluation import JudgedReply, answer_and_judge, judges_alone
from cluster.fleet import EngineHandle, Fleet
from cluster.groups import (
    affordable_groups,
    build_experiences,
    is_constant,
    ledger_row,
    others_behind,
    renumbered,
    row_of,
    sample_seed,
    split_by_worth,
    unused_ids,
)
from cluster.ledger import FILTERED, UNLABELLED, Ledger, LedgerRow, labels_by_step, labels_in
from cluster.references import discard_references, has_reference, latest_reference
from cluster.runtime import log_to_file
from cluster.scoring import (
    ScoringGroup,
    merge_scores,
    reference_group,
    reward_groups,
    spawn_reference,
)
from configs.schema import RunConfig
from rl.data.stored import Item, prompt_of, stored_rollouts
from rl.types import Experience, Prompt, Rollout

logger = logging.getLogger(__name__)

REFERENCE_SEED = 500_000_000
"""How far the reference's samples are from the policy's in seed."""


@dataclass(kw_only=True)
class StepBatch:
    """What one learner step learns from, as references into the object store."""

    refs: list[Any]
    rows: list[LedgerRow]
    timing: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Judges:
    """Who scores replies: the named rewards, and the reference where the method has one."""

    rewards: dict[str, ScoringGroup]
    reference: ScoringGroup | None
    extra_references: tuple[ScoringGroup, ...] = ()


def start_judges(config: RunConfig) -> Judges:
    """The groups of a run; they load when they are first asked."""
    has_one = has_reference(config)
    reference = reference_group(config, latest_reference(config)) if has_one else None
    extra = tuple(reference_group(config, path) for path in config.model.extra_references)
    return Judges(rewards=reward_groups(config), reference=reference, extra_references=extra)


class Collector:
    """Leases prompts, has them sampled and scored, and hands batches to the learner."""

    def __init__(
        self,
        config: RunConfig,
        engines: Sequence[EngineHandle],
        items: Sequence[Item],
        reference_engine: EngineHandle | None = None,
        *,
        judges: Judges | None = None,
    ) -> None:
        """Judges are started here, in the run's own way, where none are given."""
        log_to_file(config.cluster.run_dir, "collector")
        self.config = config
        self.items = list(items)
        self.ledger = Ledger(config.cluster.run_dir)
        deadline_s = config.cluster.rollout.generate_deadline_s
        self.fleet = Fleet(engines, deadline_s)
        self.reference_fleet = Fleet([reference_engine] if reference_engine else [], deadline_s)
        judges = judges or start_judges(config)
        self.rewards, self.reference = judges.rewards, judges.reference
        self.extra_references = judges.extra_references
        self.version = -1
        self._advanced = asyncio.Condition()
        self._batches: dict[int, asyncio.Task[StepBatch]] = {}
        self._loop: asyncio.Task[None] | None = None

    async def ready(self) -> None:
        """Wait until every judge has loaded."""
        await asyncio.gather(*(group.ready() for group in self._groups()))

    def _groups(self) -> list[ScoringGroup]:
        references = [self.reference] if self.reference else []
        return [*self.rewards.values(), *references, *self.extra_references]

    async def take_up(
        self,
        config: RunConfig,
        engines: Sequence[EngineHandle],
        items: Sequence[Item],
        reference_engine: EngineHandle | None,
    ) -> None:
        """Serve another run, with those judges of the last one that would be started again."""
        idle = self._groups()
        judges = start_judges(config)
        run_dir = config.cluster.run_dir
        self.__init__(config, engines, items, reference_engine, judges=judges)
        for group in self._groups():
            group.adopt(idle, run_dir)
        for group in idle:
            group.end()

    async def move_reference(self, path: str) -> None:
        """Let the reference answer from another folder from the next group on."""
        if self.reference is not None:
            await self.reference.respawn(partial(spawn_reference, self.config, path))

    # ---- the learner's calls ---------------------------------------------------------------

    async def begin(self, version: int) -> None:
        """Start collecting for the step after `version`; what was recorded later is discarded."""
        if self._loop is not None:
            self._loop.cancel()
            for task in self._batches.values():
                task.cancel()
            self._batches.clear()
        if discard_references(self.config, version):
            await self.move_reference(latest_reference(self.config))
        discarded = self.ledger.rewind(version)
        if discarded:
            logger.warning("going back to step %d: %d steps are run again", version, discarded)
        await self.ready()
        await self._announce(version)
        self._loop = asyncio.create_task(self._collect(version + 1))

    async def take(
        self, step: int, rank: int, world_size: int
    ) -> tuple[list[Any], dict[str, float]]:
        """This rank's share of the groups of `step`, and how long sampling and scoring took."""
        while step not in self._batches:
            # Other ranks may ask before rank 0 has begun; a loop that failed says why.
            if self._loop is not None and self._loop.done():
                self._loop.result()
            await asyncio.sleep(0.002)
        batch = await asyncio.shield(self._batches[step])
        return batch.refs[rank::world_size], batch.timing

    async def advance(self, version: int) -> None:
        """Step `version` was learned from and its weights are on the engines."""
        batch = await self._batches.pop(version)
        self.ledger.commit(version, batch.rows)
        await self._announce(version)

    async def _announce(self, version: int) -> None:
        async with self._advanced:
            self.version = version
            self._advanced.notify_all()

    # ---- the loop --------------------------------------------------------------------------

    async def _collect(self, first_step: int) -> None:
        self._ids = unused_ids(self.ledger.used())
        self._labels = labels_by_step(self.ledger.run_dir)
        selection = self.config.feedback.selection
        per_step = self.config.data.prompts_per_step * (selection.pool if selection else 1)
        for step in range(first_step, self.config.algorithm.num_steps + 1):
            async with self._advanced:
                oldest = step - 1 - self.config.algorithm.max_staleness
                await self._advanced.wait_for(lambda oldest=oldest: self.version >= oldest)
            leased = list(itertools.islice(self._ids, per_step))
            self._batches[step] = asyncio.create_task(self._batch(step, leased))

    async def _batch(self, step: int, leased: Sequence[int]) -> StepBatch:
        started = time.monotonic()
        unlabelled: list[list[Rollout]] = []
        if self.config.feedback.selection is None:
            experiences, sampled = await self._walks(leased)
        else:
            groups, unlabelled = await self._selected(leased)
            sampled = time.monotonic()
            experiences = await self._judged(groups)
        filtered: list[Experience] = []
        for _ in range(self.config.algorithm.resample_rounds):
            useless = [e for e in experiences if is_constant(e, self.config)]
            own = sum(len(e.rollouts) for e in [*experiences, *filtered])
            useless = useless[: affordable_groups(self.config, self._labels, step, own)]
            if not useless:
                break
            others, sampled = await self._walks(list(itertools.islice(self._ids, len(useless))))
            filtered += useless
            experiences = [e for e in experiences if e not in useless] + others
        rows = [
            *(ledger_row(step, e.rollouts) for e in experiences),
            *(ledger_row(step, e.rollouts, FILTERED) for e in filtered),
            *(ledger_row(step, group, UNLABELLED) for group in unlabelled),
        ]
        labels = self._labels[step] = labels_in(rows)
        return StepBatch(
            refs=[ray.put(experience) for experience in experiences],
            rows=rows,
            timing={
                "time/sample": sampled - started,
                "time/score": time.monotonic() - sampled,
                "labels": float(labels),
            },
        )

    async def _selected(
        self, leased: Sequence[int]
    ) -> tuple[list[list[Rollout]], list[list[Rollout]]]:
        """The groups that are worth their labels, and the others."""
        parts = await asyncio.gather(*(self._replies(lease) for lease in self._leases(leased)))
        groups = [group for part in parts for group in part]
        selection = self.config.feedback.selection
        assert selection is not None
        reference = None
        if selection.by in ("certainty", "hybrid"):
            reference = await self._reference_logprobs([r for group in groups for r in group])
        count = self.config.data.prompts_per_step
        return split_by_worth(selection.by, groups, reference, count)

    async def _walks(self, leased: Sequence[int]) -> tuple[list[Experience], float]:
        """Groups through sampling and scoring, lease by lease; also when sampling ended."""
        parts = await asyncio.gather(*(self._walk(lease) for lease in self._leases(leased)))
        experiences = [experience for part, _ in parts for experience in part]
        return experiences, max(end for _, end in parts)

    def _leases(self, leased: Sequence[int]) -> list[Sequence[int]]:
        """Two leases per engine and step: one is scored while the other is sampled."""
        count = min(len(leased), 2 * len(self.fleet.engines))
        return [part.tolist() for part in np.array_split(np.asarray(leased), count)]

    async def _walk(self, lease: Sequence[int]) -> tuple[list[Experience], float]:
        """One lease through sampling and scoring; also when its sampling ended."""
        groups = await self._replies(lease)
        sampled = time.monotonic()
        return await self._judged(groups), sampled

    async def _judged(self, groups: Sequence[Sequence[Rollout]]) -> list[Experience]:
        flat = [rollout for group in groups for rollout in group]
        others = others_behind(groups) if self.config.algorithm.loss.name == "kto" else []
        *scores, logprobs = await asyncio.gather(
            *(group.score(flat) for group in self.rewards.values()),
            self._reference_logprobs([*flat, *others]),
        )
        extra = [
            [float(row.sum()) for part in await group.score(flat) for row in part]
            for group in self.extra_references
        ]
        merged = {name: s for part in scores for name, s in merge_scores(part).items()}
        experiences = list(build_experiences(groups, merged, logprobs[: len(flat)], extra))
        if others:
            unscored = build_experiences([[r] for r in others], {}, logprobs[len(flat) :])
            pairs = zip(experiences, unscored, strict=True)
            experiences = [replace(group, mismatched=other) for group, other in pairs]
        return experiences

    async def _replies(self, lease: Sequence[int]) -> list[list[Rollout]]:
        """The groups of a lease: sampled from the policy or the reference, stored, or both."""
        source = self.config.data.source
        parts: list[list[list[Rollout]]] = []
        if source != "stored":
            requests = [self._request(group_id) for group_id in lease]
            calls = [self.fleet.generate(requests)]
            if source == "policy+reference":
                # Of one seed, a policy that has not moved yet would write the very same replies.
                others = [replace(r, seed=(r.seed + REFERENCE_SEED) % 2**31) for r in requests]
                calls.append(self.reference_fleet.generate(others))
            parts += await asyncio.gather(*calls)
        if len(parts) == 2:
            parts[1] = [[replace(r, source="reference") for r in group] for group in parts[1]]
        if source in ("stored", "policy+stored"):
            parts.append([self._stored(group_id) for group_id in lease])
        return [
            renumbered([r for group in groups for r in group])
            for groups in zip(*parts, strict=True)
        ]

    def _stored(self, group_id: int) -> list[Rollout]:
        item = self._item(group_id)
        assert not isinstance(item, Prompt), "cluster.inputs reads rows with replies for this"
        return stored_rollouts(
            group_id, item, max(self.version, 0), demo_score=self.config.data.demo_score
        )

    async def _reference_logprobs(self, rollouts: list[Rollout]) -> list[np.ndarray]:
        if self.reference is None:
            return [np.zeros(len(rollout.tokens), dtype=np.float32) for rollout in rollouts]
        return [row for part in await self.reference.score(rollouts) for row in part]

    def _item(self, group_id: int) -> Item:
        return self.items[row_of(self.config, group_id, len(self.items))]

    def _request(self, group_id: int) -> SampleRequest:
        data = self.config.data
        return SampleRequest(
            group_id=group_id,
            prompt=prompt_of(self._item(group_id)),
            num_samples=data.samples_per_prompt,
            seed=sample_seed(data.seed, group_id, data.samples_per_prompt),
            with_greedy=self.config.algorithm.advantage == "greedy_baseline",
        )

    async def evaluate(self, prompts: Sequence[Prompt]) -> list[JudgedReply]:
        """One judged reply to each of some held-out prompts, from the weights the engines have."""
        kinds = {name: reward.kind for name, reward in self.config.feedback.rewards.items()}
        judges = {n: group for n, group in self.rewards.items() if judges_alone(kinds[n])}
        stays = self.config.model.reference_update == "frozen"
        is_drawn = not self.config.data.sampling.greedy
        reference = self.reference if stays and is_drawn else None
        return await answer_and_judge(self.fleet, judges, prompts, self.config.data.seed, reference)

    def stats(self) -> dict[str, int]:
        """Retries of scoring calls so far."""
        return {"retries": sum(group.retries for group in self._groups())}

    def __repr__(self) -> str:
        return f"Collector(version {self.version})"
