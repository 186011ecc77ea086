"""`attune serve`: what is reached over HTTP."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.commands import load
from cluster.exits import guarded
from configs.paths import absolute_paths

app = typer.Typer(help="Serve what other programs reach over HTTP.", no_args_is_help=True)


@app.callback()
def commands() -> None:
    """Serve what other programs reach over HTTP."""


@app.command()
def rewards(
    config: Annotated[Path, typer.Argument(help="YAML of a run, or the folder of a run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="section.key=value, in place of what the YAML says."),
    ] = None,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Serve a run's named rewards to several runs and to other programs, until stopped.

    `cluster.reward_service` says where and with how many replicas; runs choose the service by
    `feedback.service=http://HOST:PORT`.
    """
    with guarded(debug):
        loaded = absolute_paths(load(config, overrides))
        from cluster.serve.checks import check_service_inputs

        token = check_service_inputs(loaded)
        from cluster.serve.service import serve_rewards

        try:
            serve_rewards(loaded, token, typer.echo)
        except KeyboardInterrupt:
            typer.echo("stopped", err=True)
        except RuntimeError as error:
            if debug:
                raise
            from cluster.runtime import root_cause

            typer.echo(f"error: {root_cause(error)}", err=True)
            raise typer.Exit(1) from error
