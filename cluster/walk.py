"""The walk of prompt groups: leased, sampled, judged, and put together to the batches of steps.

    lease ─▶ fleet.generate ─▶ rewards ∥ reference ─▶ experience ─▶ batch of step s
      ▲
      └──── admission: version ≥ s - 1 - max_staleness

Step s learns from the groups leased for it and from no others, so every group is used once. With
`algorithm.max_lateness`, groups with long replies may be up to so many steps late: a step takes the
oldest groups that are whole.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import ray

from actors.rollout import SampleRequest
from cluster.evaluation import JudgedReply, answer_and_judge, judges_alone
from cluster.fleet import Fleet
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
from cluster.judges import Judges
from cluster.ledger import FILTERED, UNLABELLED, Ledger, LedgerRow, labels_in
from cluster.references import discard_references, latest_reference
from cluster.scoring import REFERENCE, ScoringGroup, merge_scores, spawn_reference
from configs.schema import RunConfig
from rl.data.stored import Item, prompt_of, stored_rollouts
from rl.types import Experience, Prompt, Rollout

logger = logging.getLogger(__name__)

T = TypeVar("T")
REFERENCE_SEED = 500_000_000
"""How far the reference's samples are from the policy's in seed."""


@dataclass(kw_only=True)
class StepBatch:
    """What one learner step learns from, as references into the object store."""

    refs: list[Any]
    rows: list[LedgerRow]
    timing: dict[str, float] = field(default_factory=dict)


class Walk:
    """Collects the batches of a run, as far ahead as staleness allows.

    >>> # await walk.begin(0); refs, rows, timing = await walk.take(1, 0, 1); await walk.advance(1)
    """

    def __init__(
        self,
        config: RunConfig,
        items: Sequence[Item],
        judges: Judges,
        fleet: Fleet,
        reference_fleet: Fleet | None = None,
        say: Callable[[str], None] = lambda phase: None,
    ) -> None:
        """`reference_fleet` samples from the reference; `say` is told the phase."""
        self.config = config
        self.items = list(items)
        self.ledger = Ledger(config.cluster.run_dir)
        self.fleet = fleet
        self.reference_fleet = reference_fleet
        self.judges = judges
        self.say = say
        self.version = -1
        self._advanced = asyncio.Condition()
        self._batches: dict[int, asyncio.Task[StepBatch]] = {}
        self._pool: dict[int, tuple[int, asyncio.Task[Any]]] = {}
        """Group -> the step it was leased for, and its walk; in the order of leases."""
        self._loops: list[asyncio.Task[None]] = []
        self.latency_s: dict[str, float] = {}
        """Judge -> seconds of its last answer, with its wait for a turn."""

    @property
    def num_ready(self) -> int:
        """Whole batches that were not taken and learned from yet; from any thread."""
        return sum(batch.done() for batch in list(self._batches.values()))

    async def ready(self) -> None:
        """Wait until every judge has loaded."""
        await asyncio.gather(*(group.ready() for group in self.judges.groups()))

    async def move_reference(self, path: str) -> None:
        """Let the reference answer from another folder from the next group on."""
        if self.judges.reference is not None:
            spawn = partial(spawn_reference, self.config, path)
            await self.judges.reference.respawn(spawn)

    # ---- the learner's calls ---------------------------------------------------------------

    async def begin(self, version: int) -> None:
        """Prepare for the step after `version`; what was recorded later is discarded."""
        self.stop()
        if discard_references(self.config, version):
            await self.move_reference(latest_reference(self.config))
        discarded = self.ledger.rewind(version)
        if discarded:
            logger.warning("going back to step %d: %d steps are run again", version, discarded)
        await self.ready()
        await self._announce(version)

    def _start(self) -> None:
        """Lease from now on: not before a step is asked for, so that questions come first, and
        that whatever was still to be recorded is."""
        ids, self._labels = self.ledger.progress()
        self._ids = unused_ids(ids)
        first = self.version + 1
        if self.config.algorithm.max_lateness:
            loops = [self._lease(first), self._collect_late(first)]
        else:
            loops = [self._collect(first)]
        self._loops = [asyncio.create_task(loop) for loop in loops]

    def stop(self) -> None:
        """Give up whatever is on its way."""
        walks = [walk for _, walk in self._pool.values()]
        for task in [*self._loops, *self._batches.values(), *walks]:
            task.cancel()
        self._loops = []
        self._batches.clear()
        self._pool.clear()

    def is_ready(self, step: int) -> bool:
        """Whether the batch of `step` can be taken; raises what ended its collecting."""
        if not self._loops:
            self._start()
        for loop in self._loops:
            if loop.done():
                loop.result()
        batch = self._batches.get(step)
        if batch is None or not batch.done():
            return False
        batch.result()
        return True

    async def take(
        self, step: int, rank: int, world_size: int
    ) -> tuple[list[Any], list[LedgerRow], dict[str, float]]:
        """This rank's share of the groups of `step`, the rows that `advance` will record for all of
        them, and how long sampling and scoring took."""
        while step not in self._batches:
            self.is_ready(step)  # a loop that failed says why
            await asyncio.sleep(0.002)
        batch = await asyncio.shield(self._batches[step])
        return batch.refs[rank::world_size], batch.rows, batch.timing

    async def advance(self, version: int, rows: Sequence[LedgerRow] | None = None) -> None:
        """Step `version` was learned from and its weights are on the engines."""
        batch = self._batches.pop(version, None)
        if rows is None:
            assert batch is not None, f"step {version} was not collected here"
            rows = (await batch).rows
        self.ledger.commit(version, rows)
        await self._announce(version)

    async def _announce(self, version: int) -> None:
        async with self._advanced:
            self.version = version
            self._advanced.notify_all()

    async def _admitted(self, step: int) -> None:
        """Wait until groups leased for `step` would not be too old when they are used."""
        algorithm = self.config.algorithm
        oldest = step - 1 - (algorithm.max_staleness - algorithm.max_lateness)
        async with self._advanced:
            await self._advanced.wait_for(lambda: self.version >= oldest)

    # ---- the loops -------------------------------------------------------------------------

    async def _collect(self, first_step: int) -> None:
        selection = self.config.feedback.selection
        per_step = self.config.data.prompts_per_step * (selection.pool if selection else 1)
        for step in range(first_step, self.config.algorithm.num_steps + 1):
            await self._admitted(step)
            leased = list(itertools.islice(self._ids, per_step))
            self._batches[step] = asyncio.create_task(self._batch(step, leased))

    async def _lease(self, first_step: int) -> None:
        """Let every group walk by itself, so that none waits for the longest reply of another."""
        for step in range(first_step, self.config.algorithm.num_steps + 1):
            await self._admitted(step)
            for group_id in itertools.islice(self._ids, self.config.data.prompts_per_step):
                walk = asyncio.create_task(self._walk([group_id]))
                self._pool[group_id] = (step, walk)

    async def _collect_late(self, first_step: int) -> None:
        for step in range(first_step, self.config.algorithm.num_steps + 1):
            self._batches[step] = asyncio.create_task(self._late_batch(step))
            await asyncio.wait({self._batches[step]})

    async def _late_batch(self, step: int) -> StepBatch:
        """The oldest groups that are whole, as many as a step takes; none is left too late."""
        started = time.monotonic()
        per_step = self.config.data.prompts_per_step
        latest = step - self.config.algorithm.max_lateness
        while True:
            whole = [group for group, (_, walk) in self._pool.items() if walk.done()]
            due = [group for group, (leased, _) in self._pool.items() if leased <= latest]
            if len(whole) >= per_step and set(due) <= set(whole):
                break
            await asyncio.sleep(0.005)
        parts = [self._pool.pop(group) for group in whole[:per_step]]
        walked = [walk.result() for _, walk in parts]
        experiences = [experience for found, _ in walked for experience in found]
        sampled = max(end for _, end in walked)
        late = sum(leased < step for leased, _ in parts)
        batch = self._step_batch(step, experiences, [], [], started, min(sampled, time.monotonic()))
        batch.timing["late_groups"] = float(late)
        return batch

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
        return self._step_batch(step, experiences, filtered, unlabelled, started, sampled)

    def _step_batch(
        self,
        step: int,
        experiences: Sequence[Experience],
        filtered: Sequence[Experience],
        unlabelled: Sequence[Sequence[Rollout]],
        started: float,
        sampled: float,
    ) -> StepBatch:
        rows = [
            *(ledger_row(step, e.rollouts, attempts=self._attempts(e)) for e in experiences),
            *(ledger_row(step, e.rollouts, FILTERED) for e in filtered),
            *(ledger_row(step, group, UNLABELLED) for group in unlabelled),
        ]
        labels = self._labels[step] = labels_in(rows)
        budget = self.config.feedback.label_budget
        self.say("wait")
        return StepBatch(
            refs=[ray.put(experience) for experience in experiences],
            rows=rows,
            timing={
                "time/sample": max(0.0, sampled - started),
                "time/score": max(0.0, time.monotonic() - sampled),
                "labels": float(labels),
                "labels/used": float(sum(dict(self._labels).values())),
                **({"labels/budget": float(budget)} if budget is not None else {}),
            },
        )

    def _attempts(self, experience: Experience) -> int:
        return 1 + self.fleet.retries.pop(experience.group_id, 0)

    async def _selected(
        self, leased: Sequence[int]
    ) -> tuple[list[list[Rollout]], list[list[Rollout]]]:
        """The groups that are worth their labels, and the others."""
        self.say("sample")
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
        # Where a run begins, engines still wait for their weights.
        engines = max(len(self.fleet.engines), self.config.cluster.rollout.num_engines)
        count = min(len(leased), 2 * engines)
        return [part.tolist() for part in np.array_split(np.asarray(leased), count)]

    async def _walk(self, lease: Sequence[int]) -> tuple[list[Experience], float]:
        """One lease through sampling and scoring; also when its sampling ended."""
        self.say("sample")
        groups = await self._replies(lease)
        sampled = time.monotonic()
        return await self._judged(groups), sampled

    async def _judged(self, groups: Sequence[Sequence[Rollout]]) -> list[Experience]:
        self.say("score")
        flat = [rollout for group in groups for rollout in group]
        others = others_behind(groups) if self.config.algorithm.loss.name == "kto" else []
        *scores, logprobs = await asyncio.gather(
            *(self._timed(name, group.score(flat)) for name, group in self.judges.rewards.items()),
            self._timed(REFERENCE, self._reference_logprobs([*flat, *others])),
        )
        extra = [
            [float(row.sum()) for part in await group.score(flat) for row in part]
            for group in self.judges.extra_references
        ]
        merged = {name: s for part in scores for name, s in merge_scores(part).items()}
        experiences = list(build_experiences(groups, merged, logprobs[: len(flat)], extra))
        if others:
            unscored = build_experiences([[r] for r in others], {}, logprobs[len(flat) :])
            pairs = zip(experiences, unscored, strict=True)
            experiences = [replace(group, mismatched=other) for group, other in pairs]
        return experiences

    async def _timed(self, judge: str, answer: Awaitable[T]) -> T:
        """The answer of a judge; how long it took is kept for telemetry."""
        started = time.monotonic()
        found = await answer
        self.latency_s[judge] = time.monotonic() - started
        return found

    async def _replies(self, lease: Sequence[int]) -> list[list[Rollout]]:
        """The groups of a lease: sampled from the policy or the reference, stored, or both."""
        source = self.config.data.source
        parts: list[list[list[Rollout]]] = []
        if source != "stored":
            requests = [self._request(group_id) for group_id in lease]
            calls = [self.fleet.generate(requests)]
            if source == "policy+reference":
                assert self.reference_fleet is not None
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
        if self.judges.reference is None:
            return [np.zeros(len(rollout.tokens), dtype=np.float32) for rollout in rollouts]
        return [row for part in await self.judges.reference.score(rollouts) for row in part]

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
        own = self.judges.rewards.items()
        judges = {name: group for name, group in own if judges_alone(kinds[name])}
        stays = self.config.model.reference_update == "frozen"
        is_drawn = not self.config.data.sampling.greedy
        reference: ScoringGroup | None = self.judges.reference if stays and is_drawn else None
        return await answer_and_judge(self.fleet, judges, prompts, self.config.data.seed, reference)
