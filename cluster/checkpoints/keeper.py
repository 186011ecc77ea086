"""The checkpoints of a learner: what it goes on from, and when it saves."""

import hashlib
import os
import tempfile
from pathlib import Path

from actors.learner import Learner
from cluster.checkpoints.resume import resume
from cluster.checkpoints.saver import Saver
from cluster.checkpoints.store import store_of
from configs.schema import RunConfig
from rl.types import Metrics


class Checkpoints:
    """One per learner rank; all ranks make the same calls.

    >>> # checkpoints = Checkpoints(config, learner)        # learner.state.version: where to go on
    >>> # metrics |= checkpoints.copy(step); log.write(...); checkpoints.upload()
    """

    def __init__(self, config: RunConfig, learner: Learner) -> None:
        """Take up the newest whole checkpoint; raises CheckpointsLost."""
        self.settings, self.learner = config.cluster.checkpoint, learner
        self.num_steps = config.algorithm.num_steps
        run_dir, store, scratch = config.cluster.run_dir, store_of(config), _scratch(config)
        step, self.attempt = resume(store, scratch, learner.load, run_dir)
        assert step == learner.state.version
        self._last = step
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

    def copy(self, step: int, *, at_once: bool = False) -> Metrics:
        """Copy the state of a finished step to this node where a checkpoint is due; a collective.

        A checkpoint is due every `interval` steps, at the end, and `at_once`.
        """
        self.saver.check()
        is_due = at_once or step % self.settings.interval == 0 or step == self.num_steps
        if not is_due or step == self._last:
            return {}
        self._last = step
        return {"time/checkpoint": self.saver.copy(step, self.learner.save)}

    def upload(self) -> None:
        """Upload what was copied. Comes last in a step: a resumed run finds all of its records."""
        self.saver.upload()

    def close(self) -> None:
        """Wait until the last checkpoint is on record."""
        self.saver.close()


def _scratch(config: RunConfig) -> Path:
    """The same folder in every attempt, so that one clears what a killed one left behind."""
    run_dir = os.path.realpath(config.cluster.run_dir)
    key = hashlib.sha256(run_dir.encode()).hexdigest()[:12]
    return Path(config.cluster.checkpoint.scratch or tempfile.gettempdir()) / f"attune-{key}"
