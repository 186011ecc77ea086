"""The thread that keeps an index up with its run, for as long as somebody asks.

    request ─▶ asked ─▶ is it alive? ──no──▶ the request refreshes, a little; then `begin`
                           │ yes
                           ▼
    thread: refresh ─▶ more to read? ──yes──▶ refresh ─▶ ...
                           │ no, or it fails, or comes no further
                           ▼
                       rest, longer where looking takes long ─▶ nobody asked for IDLE_S? ─▶ end

It outlives errors: one that is over by the next look must not leave an old run on the pages.
"""

import logging
import threading
import time

from cluster.rollouts.index import Index

logger = logging.getLogger(__name__)

SLICE_S = 0.3
"""After so long, what was indexed is shown."""
INTERVAL_S = 1.0
"""At least, between two looks at a run of which all is known."""
REST = 20
"""Times as long as a look takes is rested at least: folders of a long run are thousands."""
IDLE_S = 60.0
"""After so long without a request the thread ends."""


class Keeper:
    """Refreshes an index in the background.

    >>> # keeper.begin(); keeper.asked()   -> True, for IDLE_S from each request on
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._asked_at = 0.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._problem = ""

    def asked(self) -> bool:
        """Note that somebody asks; whether the thread is at work."""
        with self._lock:
            self._asked_at = time.monotonic()
            return self._is_alive()

    def begin(self) -> None:
        """Start the thread where it is not at work."""
        with self._lock:
            if self._is_alive():
                return
            self._asked_at = time.monotonic()
            self._ended = threading.Event()
            self._thread = threading.Thread(
                target=self._keep_up, args=[self._ended], name="rollouts", daemon=True
            )
            try:
                self._thread.start()
            except RuntimeError as error:  # too many threads: requests refresh by themselves
                logger.warning("samples are not indexed in the background: %s", error)

    def _is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def close(self) -> None:
        """End the thread, and wait for that."""
        with self._lock:
            self._ended.set()
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def _keep_up(self, ended: threading.Event) -> None:
        budget_s = 0.0  # the newest files alone: somebody may be waiting for a page
        while not ended.is_set():
            if self._refresh(budget_s):
                budget_s = SLICE_S
                continue
            if self._is_over():
                return
            ended.wait(max(INTERVAL_S, REST * self._index.look_s))

    def _refresh(self, budget_s: float) -> bool:
        """Whether there is more to read, and reading comes further."""
        before = self._index.snapshot
        try:
            now = self._index.refresh(budget_s)
        except Exception as error:
            # Whatever it is, such as a disk that is away or no more threads.
            problem = f"{type(error).__name__}: {error}"
            if problem != self._problem:
                logger.warning("samples cannot be indexed just now: %s", problem, exc_info=True)
            self._problem = problem
            return False
        self._problem = ""
        is_further = (now.files, now.notes) != (before.files, before.notes)
        return is_further and now.num_pending > 0

    def _is_over(self) -> bool:
        """Whether nobody asks any more; if so, whoever asks next finds no thread."""
        with self._lock:
            if time.monotonic() - self._asked_at < IDLE_S:
                return False
            self._thread = None
            return True
