"""Drawings made in threads and shared by all who ask for the same one within a second."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

FRESH_S = 1.0
"""A drawing is given to others for so long."""
LIMIT_S = 8.0
"""Nobody waits longer for one: a disk that hangs must not hang the page, nor what is behind it."""
NUM_THREADS = 8
MOST_UNDER_WAY = 24


class Busy(Exception):
    """There is no answer in time; ask again."""


@dataclass
class _Drawing:
    started: float
    future: asyncio.Future[Any]

    @property
    def age(self) -> float:
        return time.monotonic() - self.started


class Drawings:
    """What is being drawn, and what was just now.

    >>> # page = await drawings.get(("overview", "first-run"), draw)
    """

    def __init__(self, *, fresh_s: float = FRESH_S, limit_s: float = LIMIT_S) -> None:
        self.fresh_s, self.limit_s = fresh_s, limit_s
        self._kept: OrderedDict[Hashable, _Drawing] = OrderedDict()
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="draw")

    async def get(self, key: Hashable, draw: Callable[[], T]) -> T:
        """What `draw` returns, called in a thread; `key` says what is drawn.

        Raises Busy where that takes too long, or too much is under way; and what `draw` raises.
        """
        self._forget()
        drawing = self._kept.get(key)
        if drawing is None:
            drawing = self._begin(key, draw)
        elif not drawing.future.done() and drawing.age > self.limit_s:
            raise Busy  # it hangs: do not let everyone wait for it in full
        try:
            return await asyncio.wait_for(asyncio.shield(drawing.future), self.limit_s)
        except TimeoutError as error:
            if drawing.future.done():  # its own, not that of waiting
                raise
            raise Busy from error

    def _begin(self, key: Hashable, draw: Callable[[], T]) -> _Drawing:
        if sum(not one.future.done() for one in self._kept.values()) >= MOST_UNDER_WAY:
            raise Busy
        future = asyncio.get_running_loop().run_in_executor(self._threads, draw)
        future.add_done_callback(_look)
        drawing = self._kept[key] = _Drawing(time.monotonic(), future)
        return drawing

    def _forget(self) -> None:
        """Only what is fresh, or under way, is kept: pages are large."""
        for key in [key for key, one in self._kept.items() if self._is_over(one)]:
            del self._kept[key]

    def _is_over(self, drawing: _Drawing) -> bool:
        return drawing.future.done() and drawing.age >= self.fresh_s

    def close(self) -> None:
        """Take no more; threads that hang are left to end with the process."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look(future: asyncio.Future[Any]) -> None:
    """Nobody may be waiting for an error any more."""
    if not future.cancelled():
        future.exception()
