"""What every process of a run does when it begins to serve it: log, and tell of itself."""

from collections.abc import Iterator
from contextlib import contextmanager

from cluster.metrics.pulse import Facts, Pulse, no_facts
from cluster.phases import set_phase
from cluster.runtime import log_to_file

WAIT = "wait"
"""Phase of a process that has nothing to do."""


class Role:
    """One process as one role of one run.

    >>> # role = Role(run_dir, "engine-0", facts=engine.live_facts); role.enter("sample")
    """

    def __init__(
        self, run_dir: str, name: str, facts: Facts = no_facts, *, with_children: bool = False
    ) -> None:
        """`facts` are told every few seconds beside memory, from a thread; keys as in the table."""
        self.run_dir, self.name = run_dir, name
        self.phase = ""
        log_to_file(run_dir, name)
        self._pulse = Pulse(run_dir, name, facts, with_children=with_children)

    def enter(self, phase: str) -> None:
        """Say what the process does now, if that is new."""
        if phase != self.phase:
            self.phase = phase
            set_phase(self.run_dir, self.name, phase)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """In a phase for the length of the block, waiting for work before and behind it."""
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(WAIT)

    def leave(self) -> None:
        """Serve this run no more."""
        self._pulse.close()
