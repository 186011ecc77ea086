"""Reward and reference actors as groups that score, with deadline, retry and replacement."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayTaskError

from actors.judges.answers import checked
from actors.reward import Judge, Scores, build_judge
from actors.rollout import EngineSpec
from actors.specs import FrozenSpec
from cluster.batches import rollout_rows
from cluster.errors import with_batch
from cluster.events import record
from cluster.roles import Role
from cluster.runtime import free_port, role_env
from configs.cluster import ScoringPlacement
from configs.schema import MODEL_KINDS, RewardConfig, RunConfig
from rl.types import Rollout

logger = logging.getLogger(__name__)

GONE = (RayActorError, ObjectLostError)
"""What calls raise whose actor has died, and answers whose node has."""

REFERENCE = "reference"
"""What the processes of the policy's own reference are called."""
Spawn = Callable[[], list[Any]]
"""Creates the workers of a group anew."""
Check = Callable[[Any, Sequence[Rollout]], None]
"""Looks at one worker's answer to its share of the replies."""


class Worker:
    """What every scoring actor offers its group beside `score`."""

    role: Role

    def join(self, run_dir: str) -> None:
        """Serve this run from now on."""
        self.role.leave()
        self._enter(run_dir, self.role.name)

    def _enter(self, run_dir: str, name: str) -> None:
        self.role = Role(run_dir, name, with_children=True)
        self.role.enter("start")

    def address(self) -> str:
        """A host and free port of this worker's node, where the others of its group find it."""
        return f"{ray.util.get_node_ip_address()}:{free_port()}"


class RewardWorker(Worker):
    """One worker of a named reward."""

    def __init__(
        self, name: str, reward: RewardConfig, spec: FrozenSpec | EngineSpec | None, run_dir: str
    ) -> None:
        self._enter(run_dir, f"reward-{name}-{spec.rank if isinstance(spec, FrozenSpec) else 0}")
        self.name, self.reward, self.spec = name, reward, spec

    def load(self, address: str) -> None:
        """Load the judge; the models of a group meet at `address`."""
        self.judge: Judge = build_judge(self.name, self.reward, self.spec, address)
        self.role.enter("wait")

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """Judge this worker's share of the replies."""
        with self.role.during("score"):
            return self.judge.score(rollouts)

    def __repr__(self) -> str:
        return f"Reward({self.name})"


class ReferenceWorker(Worker):
    """One worker of the reference policy."""

    def __init__(self, name: str, spec: FrozenSpec, temperature: float, run_dir: str) -> None:
        self._enter(run_dir, f"{name}-{spec.rank}")
        self.name, self.spec, self.temperature = name, spec, temperature

    def load(self, address: str) -> None:
        """Load the model; those of a group meet at `address`."""
        from actors.reference import Reference  # loads torch, in this process alone

        self.reference = Reference(self.spec, self.temperature, address)
        self.role.enter("wait")

    def score(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
        """Log-probs of this worker's share of the replies."""
        with self.role.during("score"):
            return self.reference.logprobs(rollouts)

    def __repr__(self) -> str:
        return f"Reference({self.name}-{self.spec.rank})"


class ScoringGroup:
    """Workers that answer together; one call at a time, so ranks see calls in the same order."""

    hint = "see its log in the run folder"
    """What is said of a group that does not start."""

    def __init__(
        self,
        name: str,
        spawn: Spawn,
        *,
        deadline_s: float,
        attempts: int,
        start_deadline_s: float,
        run_dir: str,
        built_of: str = "",
        check: Check | None = None,
    ) -> None:
        """`check` raises `ValueError` for an answer that cannot be used. Failures become events of
        `run_dir`: judge_failed, or judge_replaced.
        """
        self.name = name
        self.run_dir, self.check = run_dir, check
        self.spawn = spawn
        self.built_of = built_of
        """What its workers were started with; groups of one such text answer alike. Empty: unlike
        all others."""
        self.deadline_s = deadline_s
        self.attempts = attempts
        self.start_deadline_s = start_deadline_s
        self.retries = 0
        self.workers: list[Any] = []
        """Spawned when they are first needed."""
        self._turn = asyncio.Lock()
        self._loading: asyncio.Task[None] | None = None

    def adopt(self, idle: list["ScoringGroup"], run_dir: str) -> None:
        """Take over the workers of an idle group that answers alike, and it from the list."""
        for other in idle:
            if other.workers and self.built_of and other.built_of == self.built_of:
                self.workers, self._loading = other.workers, other._loading
                idle.remove(other)
                for worker in self.workers:
                    worker.join.remote(run_dir)
                return

    def end(self) -> None:
        """End all workers."""
        for worker in self.workers:
            ray.kill(worker)
        self.workers = []

    async def ready(self) -> None:
        """Let all workers load, side by side, if they have not; returns once they have.

        Those that die meanwhile are replaced, `attempts` times.
        """
        for attempt in range(1, self.attempts + 1):
            try:
                return await self._load_once()
            except GONE as error:
                self._note(attempt, "its process died while it loaded", "replaced")
                self._replace()
                if attempt == self.attempts:
                    raise RuntimeError(
                        f"{self.name} died {attempt} times while it loaded; {self.hint}"
                    ) from error

    async def _load_once(self) -> None:
        if self._loading is None:
            self._loading = asyncio.create_task(self._load())
        if self._loading.done():
            return self._loading.result()
        try:
            await asyncio.wait_for(asyncio.shield(self._loading), self.start_deadline_s)
        except TimeoutError as error:
            raise RuntimeError(
                f"{self.name} did not start within {self.start_deadline_s:.0f} s; {self.hint}"
            ) from error

    async def _load(self) -> None:
        self.workers = self.workers or self.spawn()
        # Ray decides where rank 0 lives, so only rank 0 knows where the others can meet it.
        address = await self.workers[0].address.remote() if len(self.workers) > 1 else ""
        await asyncio.gather(*(worker.load.remote(address) for worker in self.workers))

    async def score(self, rollouts: Sequence[Rollout]) -> list[Any]:
        """The workers' results in order; raises once `attempts` tries have failed.

        A failed score is never a number: no reply is used without one.
        """
        reason, cause = "", None
        async with self._turn:
            for attempt in range(1, self.attempts + 1):
                gone = False
                try:
                    await self._loaded()
                    return await self._call(rollouts)
                except (GetTimeoutError, TimeoutError) as error:
                    reason, cause, gone = self._late(), error, True
                except GONE as error:
                    reason, cause, gone = "its process died", error, True
                except RayTaskError as error:
                    reason, cause = " ".join(str(error.cause).split())[:500], error
                except ValueError as error:  # an answer that does not fit
                    reason, cause = str(error), error
                self._note(attempt, reason, "replaced" if gone else "failed")
                if gone:
                    self._replace()
        raise with_batch(
            RuntimeError(
                f"{self.name} failed {self.attempts} times (phase: score); last: {reason}"
            ),
            rollout_rows(rollouts),
        ) from cause

    async def _loaded(self) -> None:
        """As `ready`; what a worker says that cannot load is no failed score, but ends the run."""
        try:
            await self.ready()
        except RayTaskError as error:
            raise RuntimeError(f"{self.name} did not load: {error.cause}") from error

    def _late(self) -> str:
        return f"no answer within {self.deadline_s:.0f} s (feedback.deadline_s)"

    def _note(
        self, attempt: int, reason: str, kind: Literal["failed", "replaced"] = "failed"
    ) -> None:
        """Count and tell of a call that has to be made again."""
        self.retries += 1
        logger.warning("%s failed (try %d): %s", self.name, attempt, reason)
        record(self.run_dir, f"judge_{kind}", judge=self.name, reason=reason[:300])

    async def _call(self, rollouts: Sequence[Rollout]) -> list[Any]:
        shares = np.array_split(np.arange(len(rollouts)), len(self.workers))
        calls = []
        for worker, share in zip(self.workers, shares, strict=True):
            # A worker without a share still has to take part in the group's collectives.
            rows = share if len(share) else np.arange(1)
            calls.append(worker.score.remote([rollouts[int(row)] for row in rows]))
        results = await asyncio.wait_for(asyncio.gather(*calls), self.deadline_s)
        answers = [
            (result, [rollouts[int(row)] for row in share])
            for result, share in zip(results, shares, strict=True)
            if len(share)
        ]
        if self.check is not None:
            for answer, share in answers:
                self.check(answer, share)
        return [answer for answer, _ in answers]

    async def respawn(self, spawn: Spawn) -> None:
        """End the workers after the call in progress, and go on with others."""
        async with self._turn:
            self.spawn, self.built_of = spawn, ""  # it answers as none that is started anew
            self._replace()

    def _replace(self) -> None:
        self.end()
        self._loading = None


def merge_scores(parts: Sequence[Scores]) -> Scores:
    """The workers' shares side by side again."""
    return {name: tuple(x for part in parts for x in part[name]) for name in parts[0]}


def check_scores(name: str, answer: Any, rollouts: Sequence[Rollout]) -> None:
    """Whether a judge of reward `name` gave every reply one finite number, parts included."""
    if not isinstance(answer, Mapping) or name not in answer:
        raise ValueError(f"reward {name}: no scores of this name in what its judge returned")
    for part, scores in answer.items():
        checked(part, scores, rollouts)


def reward_groups(config: RunConfig) -> dict[str, ScoringGroup]:
    """One group per named reward: of a service where the run names one, else of own actors."""
    if config.feedback.service is not None:
        from cluster.serve.client import ServiceGroup  # which is made of this module

        return {name: ServiceGroup(config, name) for name in config.feedback.rewards}
    placement = config.cluster.reward
    return {
        name: ScoringGroup(
            f"reward {name}",
            partial(_spawn_reward, config, name, reward),
            deadline_s=config.feedback.deadline_s,
            attempts=config.feedback.attempts,
            start_deadline_s=placement.start_deadline_s,
            run_dir=config.cluster.run_dir,
            check=partial(check_scores, name),
            built_of=repr(
                (name, _unweighted(reward), reward_specs(config, name, reward), placement)
            ),
        )
        for name, reward in config.feedback.rewards.items()
    }


def _unweighted(reward: RewardConfig) -> RewardConfig:
    return reward.model_copy(update={"weight": 1.0})


def _spawn_reward(config: RunConfig, name: str, reward: RewardConfig) -> list[Any]:
    placement, run_dir = config.cluster.reward, config.cluster.run_dir
    return [
        _worker(RewardWorker, placement, config).remote(name, reward, spec, run_dir)
        for spec in reward_specs(config, name, reward)
    ]


def reward_specs(
    config: RunConfig, name: str, reward: RewardConfig
) -> Sequence[FrozenSpec | EngineSpec | None]:
    """What each worker of a reward has to load."""
    if reward.kind not in MODEL_KINDS:
        return [None]
    path = reward.path or reward.paths[0]  # an ensemble loads its other folders likewise
    if reward.kind == "llm_judge":
        return [judge_spec(config, name, path)]
    return frozen_specs(config, "value", path, config.cluster.reward.num_workers)


def judge_spec(config: RunConfig, name: str, path: str) -> EngineSpec:
    """An engine of its own, set up as the rollout engines are, that gets no new weights.

    Its context holds a prompt and two replies, whose tokens may be more than the policy's.
    """
    device = config.cluster.device
    return EngineSpec(
        name=f"judge-{name}",
        model_path=path,
        dtype=config.model.dtype,
        max_length=4 * config.model.max_length + config.feedback.rewards[name].verdict_tokens,
        sampling=config.data.sampling,
        placement=config.cluster.rollout.model_copy(update={"tensor_parallel_size": 1}),
        transport="gloo" if device == "cpu" else "nccl",
        device=device,
        seed=config.data.seed,
    )


def reference_group(config: RunConfig, path: str, name: str = REFERENCE) -> ScoringGroup:
    """A reference policy, from a model folder; `name` is that of its processes."""
    return ScoringGroup(
        f"the reference policy {path}",
        partial(spawn_reference, config, path, name),
        deadline_s=config.feedback.deadline_s,
        attempts=config.feedback.attempts,
        start_deadline_s=config.cluster.reference.start_deadline_s,
        run_dir=config.cluster.run_dir,
        built_of=repr(
            (
                name,
                frozen_specs(config, "policy", path, config.cluster.reference.num_workers),
                config.data.sampling.temperature,
                config.cluster.reference,
            )
        ),
    )


def spawn_reference(config: RunConfig, path: str, name: str = REFERENCE) -> list[Any]:
    """Workers of the reference policy; they load when they are told to."""
    placement = config.cluster.reference
    return [
        _worker(ReferenceWorker, placement, config).remote(
            name, spec, config.data.sampling.temperature, config.cluster.run_dir
        )
        for spec in frozen_specs(config, "policy", path, placement.num_workers)
    ]


def frozen_specs(
    config: RunConfig, kind: Literal["policy", "value"], path: str, size: int
) -> list[FrozenSpec]:
    """One spec per worker of a group."""
    return [
        FrozenSpec(
            kind=kind,
            path=path,
            dtype=config.model.dtype,
            device=config.cluster.device,
            max_tokens=config.algorithm.tokens_per_micro_batch,
            rank=rank,
            world_size=size,
        )
        for rank in range(size)
    ]


def _worker(cls: type, placement: ScoringPlacement, config: RunConfig) -> Any:
    return ray.remote(cls).options(
        num_cpus=placement.cpus_per_worker,
        num_gpus=placement.gpus_per_worker,
        label_selector=placement.labels or None,
        runtime_env=role_env(placement.cpus_per_worker, config.cluster.device),
    )
