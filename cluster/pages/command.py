"""What `attune report --serve` does."""

import os
import webbrowser
from pathlib import Path
from urllib.parse import urlencode

import typer

from cluster.pages.access import token_for
from cluster.pages.library import find_runs
from cluster.pages.listening import listen, url_of
from cluster.pages.server import leave, serve
from configs.errors import ConfigError


def serve_pages(root: Path, host: str, port: int, *, open_browser: bool) -> None:
    """Show the runs in `root` until Ctrl-C, and say where; raises ConfigError for wrong input."""
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder; give the folder of a run, or of several runs")
    runs = find_runs(root)
    if not runs:
        raise ConfigError(
            f"{root} holds no run, nor do the folders in it: none has a config.yaml; give the "
            "folder of a run, or of several runs"
        )
    token = token_for(host, os.environ)
    listener = listen(host, port)
    # What every page begins with: whoever has the token has the pages.
    asked = f"?{urlencode({'token': token})}" if token else ""
    address = f"{url_of(listener, host)}/attune/{asked}"

    def ready() -> None:
        shown = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
        typer.echo(f"{shown}: {address}   (Ctrl-C ends this)")
        if open_browser:
            webbrowser.open(address)

    try:
        serve(root, listener, host=host, token=token, ready=ready)
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        leave(0)
