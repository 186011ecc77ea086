"""Where a run can be watched while it goes on: Ray's dashboard, and pages of its own inside it.

    driver ─▶ pages' server (a process of its own) ◀── proxy slot ── dashboard ◀── browser

Nothing here may stop a run: without pages, or without a dashboard, there is less to see.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.schema import RunConfig

logger = logging.getLogger(__name__)

TOKEN_FILE = "dashboard_token"
"""In the run folder, for its owner alone, as long as the run's own Ray lives."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What to open."""

    pages: str | None = None
    """Address of the pages' server."""
    dashboard: str | None = None
    """Address of the dashboard of a Ray of our own."""
    token_file: Path | None = None
    """Holds what the dashboard asks for."""

    def links(self) -> dict[str, str]:
        """Name -> address, for people."""
        found = {}
        if self.pages is not None:
            found["pages"] = f"{self.pages}/attune/"
        if self.dashboard is not None:
            asks = f" (token: {self.token_file})" if self.token_file is not None else ""
            found["dashboard"] = self.dashboard + asks
        return found


@contextmanager
def pages_for(config: RunConfig, root: Path | None) -> Iterator[str | None]:
    """The pages' server for the length of the block; None where there is none.

    `root`: the folder of several runs, of which this is one; by default the run's own.
    """
    if not config.cluster.metrics.enabled:
        yield None
        return
    from cluster.pages.process import start_pages

    run_dir = Path(config.cluster.run_dir)
    try:
        pages = start_pages(
            root or run_dir,
            run_dir,
            port=config.cluster.metrics.pages_port or 0,
            field="cluster.metrics.pages_port",
        )
    except OSError as error:
        logger.warning("no pages: %s", error)
        yield None
        return
    try:
        yield pages.url
    finally:
        pages.stop()


def keep_token(run_dir: str) -> Path | None:
    """Write down what the dashboard of this Ray asks people for; None where it asks for nothing."""
    token = os.environ.get("RAY_AUTH_TOKEN")
    if os.environ.get("RAY_AUTH_MODE") != "token" or not token:
        return None
    path = Path(run_dir) / TOKEN_FILE
    try:
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(token + "\n")
    except OSError as error:
        logger.warning("%s could not be written: %s", path, error)
        return None
    return path


def forget_token(run_dir: str) -> None:
    """The Ray that it was for is gone."""
    (Path(run_dir) / TOKEN_FILE).unlink(missing_ok=True)


def dashboard_of(context: Any) -> str | None:
    """Address of the dashboard, from what `ray.init` returned."""
    url = getattr(context, "dashboard_url", None)
    return f"http://{url}" if url else None
