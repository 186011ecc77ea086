"""SIGTERM, as `ray job stop`, systemd and Kubernetes send it, stops a run as Ctrl-C does."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
    whatever it does. A SIGTERM that arrives meanwhile raises KeyboardInterrupt once the block has
    ended, also where that handler's exception was lost in a hook of a fork.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in KEPT}
    with _arrivals() as arrived:
        try:
            yield
        except (Exception, SystemExit) as error:  # Ray's own processes may have been ended as well
            if signal.SIGTERM not in arrived():
                raise
            raise KeyboardInterrupt from error
        finally:
            for number, handler in before.items():
                if handler is not None:  # None: set by other than Python
                    signal.signal(number, handler)
        if signal.SIGTERM in arrived():
            raise KeyboardInterrupt


@contextmanager
def _arrivals() -> Iterator[Callable[[], set[int]]]:
    """Which signals have arrived in the block so far, whoever handles them."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    seen: set[int] = set()

    def arrived() -> set[int]:
        with suppress(BlockingIOError):
            seen.update(reader.recv(4096))
        return seen

    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield arrived
    finally:
        signal.set_wakeup_fd(before)
        reader.close()
        writer.close()
