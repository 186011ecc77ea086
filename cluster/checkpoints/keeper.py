"""The checkpoints of a learner: what it goes on from, and when it saves."""

import contextlib
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import ray
import torch.distributed as dist

from actors.learner import Learner
from cluster.checkpoints.resume import resume
from cluster.checkpoints.saver import Saver
from cluster.checkpoints.store import Store, run_id, store_of
from cluster.draining import DrainWatch
from cluster.elastic import Preempted
from cluster.errors import Unrecoverable
from cluster.events import record
from cluster.heap import give_back_freed
from cluster.space import room
from configs.schema import RunConfig
from rl.types import Metrics

logger = logging.getLogger(__name__)


class Checkpoints:
    """One per learner rank; all ranks make the same calls.

    >>> # checkpoints = Checkpoints(config, learner)        # learner.state.version: where to go on
    >>> # metrics |= checkpoints.copy(step); log.write(...); checkpoints.upload()
    """

    def __init__(self, config: RunConfig, learner: Learner) -> None:
        """Take up the newest whole checkpoint; raises CheckpointsLost."""
        self.config, self.settings = config, config.cluster.checkpoint
        self.learner, self._is_leaving = learner, False
        self.num_steps = config.algorithm.num_steps
        run_dir, store = config.cluster.run_dir, store_of(config)
        scratch = scratch_of(config, _shared_id(store))
        step, self.attempt = resume(store, scratch, learner.load, run_dir)
        assert step == learner.state.version
        self._watch: DrainWatch | None = None
        self._told: set[str] = set()
        self._announce(step)
        self.saver = Saver(
            store,
            scratch / f"rank-{learner.rank}",
            rank=learner.rank,
            world_size=learner.world_size,
            attempt=self.attempt,
            keep=self.settings.keep,
            run_dir=run_dir,
            deadline_s=config.cluster.learner.phase_deadline_s,
            asynchronous=self.settings.asynchronous,
        )

    def _announce(self, step: int) -> None:
        """Tell where this attempt runs, and watch those nodes; a collective."""
        places: list[Any] = [None] * self.learner.world_size
        dist.all_gather_object(places, (ray.get_runtime_context().get_node_id(), os.getpid()))
        if self.learner.rank == 0:
            self._watch = DrainWatch([node for node, _ in places])
            record(
                self.config.cluster.run_dir,
                "learner_started",
                attempt=self.attempt,
                world_size=self.learner.world_size,
                version=step,
                pids=[pid for _, pid in places],
            )

    def copy(self, step: int) -> Metrics:
        """Copy the state of a finished step to this node where a checkpoint is due; a collective.

        One is due every `interval` steps, at the end, and after each step while a node of the
        learner is about to be taken away.
        """
        self.saver.check()
        is_due = step % self.settings.interval == 0 or step == self.num_steps
        self._is_leaving = self._hears_of_leaving(step)
        if not (is_due or self._is_leaving):
            return {}
        seconds = self.saver.copy(step, self.learner.save)
        give_back_freed()
        return {"time/checkpoint": seconds}

    def upload(self) -> None:
        """Upload what was copied. Comes last in a step: a resumed run finds all of its records.

        Raises Preempted once all is saved where the learner can go on without a node that is about
        to be taken away.
        """
        self.saver.upload()
        if self._is_leaving and self.config.cluster.learner.min_workers is not None:
            self.saver.wait()
            dist.barrier()  # rank 0 has written the manifest
            raise Preempted("saved before a node is taken away")

    def close(self) -> None:
        """Wait until the last checkpoint is on record."""
        self.saver.close()
        with contextlib.suppress(OSError):  # the last rank of the node to leave
            self.saver.scratch.parent.rmdir()
        if self._watch is not None:
            self._watch.close()

    def _hears_of_leaving(self, step: int) -> bool:
        """Whether a node of any rank is draining; the same on every rank, a collective."""
        leaving = self._watch.leaving if self._watch is not None else {}
        for node in leaving.keys() - self._told:
            self._told.add(node)
            logger.warning("node %s is about to be taken away: saving after each step", node[:8])
            record(self.config.cluster.run_dir, "preempted", node=node, step=step)
        if not self.learner.maximum(bool(leaving)):
            return False
        # Within an iteration whose samplers stay those it began with, there is no going on.
        steps = self.config.algorithm.iteration_steps
        return not (self.config.data.sliced and steps and step % steps)


def _shared_id(store: Store) -> str:
    """The run's own, on all ranks; a collective."""
    with room(store.name, "the run's id"):
        ids = [run_id(store) if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(ids, src=0)
    return ids[0]


def scratch_of(config: RunConfig, identity: str) -> Path:
    """This run's folder on a node, for this user alone.

    It is the same in every attempt, so that one takes up or clears what a killed one left behind,
    and another one for another run, also for one that takes the place of a run that was deleted.
    Raises Unrecoverable where somebody else was there first: what lies in it is loaded.
    """
    base = Path(config.cluster.checkpoint.scratch or tempfile.gettempdir())
    folder = base / f"attune-{identity}"
    with room(base, "the folder for copies of checkpoints"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
        raise Unrecoverable(
            f"cluster.checkpoint.scratch: {folder} belongs to somebody else; remove it, or give "
            "another folder"
        )
    return folder
