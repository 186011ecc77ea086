"""Processes of an engine that end with the actor they work for.

vLLM computes in children of the actor's process. Where that one and its raylet are killed together,
as when a whole process group is, nobody is left to end them: they would hold memory, or a GPU, for
good.
"""

import contextlib
import itertools
import os
import signal
import threading
import time

import psutil

LOOK_S = 2.0
CORE = "EngineCore"
"""In the name of the process in which vLLM schedules."""


def end_with_ancestors(every_s: float = LOOK_S) -> None:
    """From now on a thread ends this process soon after its parent has died.

    In a worker of a tensor-parallel engine it ends the engine core above as well, soon after the
    actor of that one has died: a core does not look itself.
    """
    chain = [psutil.Process(), *psutil.Process().parents()]
    is_worker = len(chain) > 2 and CORE in " ".join(chain[1].cmdline())
    chain = chain[: 3 if is_worker else 2]
    threading.Thread(target=_watch, args=[chain, every_s], daemon=True, name="orphans").start()


def _watch(chain: list[psutil.Process], every_s: float) -> None:
    """Each process of the chain is a child of the next one, or all but the last are ended."""
    while _is_whole(chain):
        time.sleep(every_s)
    for process in chain[1:-1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    os.kill(os.getpid(), signal.SIGKILL)


def _is_whole(chain: list[psutil.Process]) -> bool:
    try:
        return all(child.ppid() == parent.pid for child, parent in itertools.pairwise(chain))
    except psutil.NoSuchProcess:
        return False
