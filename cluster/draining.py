"""Hearing that a node will be taken away, while a rank trains: seconds to save what was learned."""

import logging
import threading
from collections.abc import Collection

from ray._private.state import state

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""Seconds between two looks at the draining nodes."""


class DrainWatch:
    """Looks in a thread whether any of some nodes is draining.

    >>> # watch = DrainWatch(node_ids); watch.leaving -> {"4f1c...": 1790000000000}
    """

    def __init__(self, nodes: Collection[str]) -> None:
        self.nodes = set(nodes)
        self.leaving: dict[str, int] = {}
        """Node id -> when it will go, unix milliseconds, 0 where that is not known."""
        self._ended = threading.Event()
        threading.Thread(target=self._run, daemon=True, name="drain-watch").start()

    def _run(self) -> None:
        while not self._ended.wait(LOOK_S):
            try:
                draining: dict[str, int] = state.get_draining_nodes()  # Ray tells it no other way
            except Exception:  # a head that is out of reach tells nothing for a while
                logger.warning("could not ask for draining nodes", exc_info=True)
                continue
            self.leaving = {name: at for name, at in draining.items() if name in self.nodes}

    def close(self) -> None:
        """Look no more."""
        self._ended.set()
