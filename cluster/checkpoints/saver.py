"""Saving beside training: each rank copies its state to its own node, a thread uploads the copy.

    step ─▶ copy (all ranks) ─▶ step ─▶ step ─▶ copy ...
              └─▶ upload rank=K ─▶ rank=K.json        each rank's thread
                     rank 0 sees all ─▶ manifest.json ─▶ older ones removed

One upload is in flight at most: a second checkpoint waits for the first. What goes wrong in the
thread is raised by the next call. A copy stays on its node until all of it is uploaded, so that the
next attempt can end what a killed one had begun (cluster.checkpoints.leftover).
"""

import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cluster.checkpoints.leftover import leftover_name
from cluster.checkpoints.manifest import (
    Saved,
    all_saved,
    counting,
    upload_part,
    write_manifest,
)
from cluster.checkpoints.store import Store
from cluster.deadlines import log_end
from cluster.events import record
from cluster.space import room

logger = logging.getLogger(__name__)

LOOK_S = 0.05
"""Seconds between two looks whether the other ranks' parts are there."""


class Saver:
    """Checkpoints of one rank.

    >>> # saver.copy(20, learner.save); log(...); saver.upload()
    """

    def __init__(
        self,
        store: Store,
        scratch: Path,
        *,
        rank: int,
        world_size: int,
        attempt: int,
        keep: int,
        run_dir: str,
        deadline_s: float,
        asynchronous: bool = True,
    ) -> None:
        """`scratch` is a folder of this rank alone; other ranks get `deadline_s` to upload."""
        self.store, self.scratch = store, scratch
        self.rank, self.world_size, self.attempt = rank, world_size, attempt
        self.keep, self.run_dir, self.deadline_s = keep, run_dir, deadline_s
        self.asynchronous = asynchronous
        self._copied: tuple[Saved, Path, float] | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def copy(self, step: int, write: Callable[[Path], None]) -> float:
        """Let `write` put this rank's state into a folder; a collective. Seconds it took.

        Waits for the upload before, and raises what went wrong in it.
        """
        started = time.monotonic()
        self.wait()
        folder = self.scratch / "copying"
        shutil.rmtree(folder, ignore_errors=True)
        with room(self.scratch, f"the checkpoint of step {step}"):
            folder.mkdir(parents=True)
            write(folder)
        self._copied = (Saved(step=step, attempt=self.attempt), folder, started)
        return time.monotonic() - started

    def upload(self) -> None:
        """Begin to upload what was copied, if anything was; without a thread, do it.

        To be called once all records of the step are written: from now on the run can go on here.
        """
        if self._copied is None:
            return
        saved, copied, started = self._copied
        self._copied = None
        folder = copied.with_name(leftover_name(saved, self.world_size))
        shutil.rmtree(folder, ignore_errors=True)
        copied.rename(folder)
        self._thread = threading.Thread(
            target=self._run, args=(saved, folder, started), daemon=True, name="checkpoint"
        )
        self._thread.start()
        if not self.asynchronous:
            self.wait()

    def wait(self) -> None:
        """Until nothing is in flight; raises what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    @property
    def is_busy(self) -> bool:
        """Whether an upload is in flight."""
        return self._thread is not None and self._thread.is_alive()

    def check(self) -> None:
        """Raise what went wrong in the upload, without waiting for it."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """Wait for the last upload and leave nothing on the node."""
        self.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)

    # ---- the thread ------------------------------------------------------------------------

    def _run(self, saved: Saved, folder: Path, started: float) -> None:
        try:
            with room(self.store.name, f"the checkpoint of step {saved.step}"):
                upload_part(self.store, saved, self.rank, self.world_size, folder)
                if self.rank == 0:
                    self._finish(saved, started)
        except BaseException as error:  # noqa: BLE001 - raised by the next call
            self._error = error
            # A half of a checkpoint is of no use, and may hold the room that is missing.
            self.store.remove(saved.name if self.rank == 0 else f"{saved.name}/rank={self.rank}")
        else:
            if self.rank == 0:
                self._tidy(saved)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _tidy(self, saved: Saved) -> None:
        """What cannot be removed now is removed after the next checkpoint."""
        try:
            self._remove_older(saved)
        except Exception:
            logger.warning("older checkpoints were not all removed", exc_info=True)

    def _finish(self, saved: Saved, started: float) -> None:
        """Write the manifest once all parts are there, and remove what is not kept."""
        end = time.monotonic() + self.deadline_s
        for rank in range(self.world_size):
            while not self.store.has(saved.part(rank)):
                if time.monotonic() > end:
                    raise RuntimeError(
                        f"learner-{rank} did not upload its part of the checkpoint of step "
                        f"{saved.step} within {self.deadline_s:.0f} s (phase: checkpoint); raise "
                        "cluster.learner.phase_deadline_s if it needs longer"
                        f"{log_end(self.run_dir, f'learner-{rank}')}"
                    )
                time.sleep(LOOK_S)
        size = write_manifest(self.store, saved, self.world_size)
        seconds = round(time.monotonic() - started, 3)
        record(self.run_dir, "checkpoint_saved", step=saved.step, seconds=seconds, bytes=size)

    def _remove_older(self, saved: Saved) -> None:
        """Keep the newest finished ones; of the others not even the unfinished are of use now."""
        finished = [one for one in counting(self.store) if self.store.has(one.manifest)]
        for one in all_saved(self.store):
            if one not in finished[: self.keep] and one != saved:
                self.store.remove(one.manifest)  # first, or a part of it would pass for torn
                self.store.remove(one.name)
