"""Listening: on an address, or on a socket that whoever started this process opened."""

import asyncio
import gc
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from aiohttp import web

from cluster.pages.access import access_to
from cluster.pages.app import make_app
from cluster.pages.library import Library

logger = logging.getLogger(__name__)

SHUTDOWN_S = 1.0


def serve(
    root: Path,
    listener: socket.socket,
    *,
    host: str,
    token: str | None = None,
    run_dir: Path | None = None,
    with_slots: bool = True,
    ready: Callable[[], object] = lambda: None,
) -> None:
    """Show the runs of a folder until interrupted; `ready` is called once it does."""
    # Reading a long run makes a hundred thousand small objects that all stay: looking through them
    # for garbage again and again takes a third of the time.
    gc.set_threshold(50_000, 20, 100)
    library = Library(root, run_dir)
    app = make_app(library, access_to(host, token), with_slots=with_slots)
    asyncio.run(_serve(app, listener, library, ready))


async def _serve(
    app: web.Application,
    listener: socket.socket,
    library: Library,
    ready: Callable[[], object],
) -> None:
    # No access log: it would hold addresses with tokens.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        ready()
        threading.Thread(target=_warm, args=[library], daemon=True, name="warm").start()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def leave(code: int) -> NoReturn:
    """End this process now: threads that draw, or that hang on a disk, are not waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _warm(library: Library) -> None:
    """Load what the first page needs, and read the run that it will show, before anybody asks."""
    import cluster.pages.rollouts
    import cluster.pages.tokens
    import cluster.rollouts.browser  # noqa: F401
    from cluster.pages.catalog import draw_run
    from cluster.pages.page import Look

    try:
        newest = library.newest()
        if newest is not None:
            draw_run(library, newest.slug, "", {}, Look(base=""))
    except Exception:  # a head start and no more: whoever asks is told
        logger.info("no head start", exc_info=True)
