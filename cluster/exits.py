"""How a command ends: exit code 2 where the user's input is refused, 1 where what it did failed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from cluster.auth import ensure_token
from cluster.signals import stop_on_sigterm
from configs.errors import ConfigError


@contextmanager
def guarded(debug: bool) -> Iterator[None]:
    """Refuse wrong input in one line with exit code 2."""
    ensure_token()
    stop_on_sigterm()
    try:
        yield
    except ValueError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


@contextmanager
def failing_with_1(folder: Path, hint: str, debug: bool) -> Iterator[None]:
    """Say in one line what ended the run in `folder`, and by which command it goes on; exit 1."""
    try:
        yield
    except typer.Exit:  # said already, by a stage inside
        raise
    except KeyboardInterrupt as error:
        typer.echo(f"stopped; go on with: {hint}", err=True)
        raise typer.Exit(1) from error
    except Exception as error:
        if type(error) is ConfigError:  # refused before anything was lost, and not from afar
            raise
        from cluster.errors import root_cause
        from cluster.failure import write_failure
        from configs.redaction import redact_text

        bundle = write_failure(folder, error)
        if debug:
            raise
        typer.echo(f"error: {redact_text(root_cause(error))}", err=True)
        if bundle is not None:
            typer.echo(f"why: attune inspect {bundle.parent} --failure", err=True)
        typer.echo(f"logs: {folder / 'logs'}; when mended, go on with: {hint}", err=True)
        raise typer.Exit(1) from error
