"""How a command ends: exit code 2 where the user's input is refused, 1 where what it did failed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from cluster.auth import ensure_token
from cluster.signals import stop_on_sigterm
from configs.errors import ConfigError


def run_app(app: typer.Typer) -> None:
    """Run the command line and exit; words that no command takes are refused in one line."""
    try:
        code = app(prog_name="attune", standalone_mode=False)
    except typer.Abort:
        code = 1
    except typer.TyperException as error:
        if line := _usage(error):
            typer.echo(line, err=True)
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: typer.TyperException) -> str:
    """What is wrong with the words of a command, and where to read which it takes.

    Empty for a command without any, which shows its help by itself.
    """
    context = getattr(error, "ctx", None)
    message = str(getattr(error, "format_message", error.__str__)()).rstrip(".")
    option = getattr(error, "option_name", None)
    if not message:
        return ""
    if option and "." in option:
        hint = f"settings are given without dashes: {option.lstrip('-')}=VALUE"
    elif context is not None:
        hint = f"see {context.command_path} --help"
    else:
        hint = "see attune --help"
    return f"error: {' '.join(message.split())}; {hint}"


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
