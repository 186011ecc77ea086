"""Reading many files on two threads, for as long as there is time."""

import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
WORKERS = 2
"""Pyarrow decodes without the interpreter's lock but finds its way with it: three are no faster."""


def each_until(
    items: Iterable[Item], task: Callable[[Item], None], deadline: float = math.inf
) -> None:
    """Call `task` for the items in their order until `time.monotonic()` says it is too late.

    Each worker finishes what it has begun, and begins one thing at least: whoever asks again and
    again comes to the end.
    """
    listed = list(items)
    waiting = iter(listed)

    def work() -> None:
        for item in waiting:  # a list's iterator hands each item to one thread alone
            task(item)
            if time.monotonic() > deadline:
                return

    if len(listed) < 2:
        return work()
    with ThreadPoolExecutor(WORKERS) as pool:
        for future in [pool.submit(work) for _ in range(WORKERS)]:
            future.result()
