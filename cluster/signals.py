"""SIGTERM, as `ray job stop`, systemd and Kubernetes send it, stops a run as Ctrl-C does."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

KEPT = (signal.SIGTERM, signal.SIGINT)


def stop_on_sigterm() -> None:
    """From now on SIGTERM raises KeyboardInterrupt, once: what ends the run is left to end it."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """What handles SIGTERM and SIGINT before the block does so after it as well.

    `ray.init` sets a handler of its own for SIGTERM, which would end the driver in the middle of
    whatever it does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in KEPT}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: set by other than Python
                signal.signal(number, handler)
