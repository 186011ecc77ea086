"""`attune k8s`: manifests from a run's YAML, checks without a cluster, and what pods run.

Nothing heavy is imported before it is needed.
"""

import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands import COMMANDS, load
from cluster.exits import guarded
from configs.errors import ConfigError

if TYPE_CHECKING:
    from cluster.k8s.manifests import Manifest
    from configs.schema import RunConfig

app = typer.Typer(help="Run on Kubernetes with KubeRay.", no_args_is_help=True)

ConfigPath = Annotated[Path, typer.Argument(help="YAML of the run, with cluster.kubernetes.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value, in place of what the YAML says.")
]

HEADER = "# Made by `attune k8s render`; change the run's YAML and render again.\n"


@app.command()
def render(
    config: ConfigPath,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; else standard output.")] = None,
) -> None:
    """Write the manifests of a run: job or cluster, network policy, monitors, reward service."""
    with guarded(debug=False):
        from cluster.k8s.manifests import render as manifests
        from cluster.k8s.text import dump_all
        from cluster.k8s.validate import Source, check

        made = manifests(load(config, overrides))
        mistakes = check([Source(file=item.file, document=item.document) for item in made])
        if mistakes:
            raise ConfigError("\n".join(mistake.line() for mistake in mistakes))
        if out is None:
            typer.echo(dump_all(item.document for item in made), nl=False)
            return
        typer.echo(f"wrote {', '.join(_write(made, out))} to {out}")


@app.command()
def validate(
    paths: Annotated[list[Path], typer.Argument(help="Files, or folders of them.")],
    crds: Annotated[
        Path | None, typer.Option(help="CRD file or folder, such as KubeRay's, to check as well.")
    ] = None,
) -> None:
    """Check manifests without a cluster: fields, and the rules of the controllers; 2 if wrong."""
    with guarded(debug=False):
        from cluster.k8s.crds import crd_schemas
        from cluster.k8s.validate import check, read

        sources = read(paths)
        schemas = crd_schemas(crds) if crds else {}
        mistakes = check(sources, schemas)
        for mistake in mistakes:
            typer.echo(mistake.line(), err=True)
        files = len({source.file for source in sources})
        if mistakes:
            counted = (_count(len(mistakes), "mistake"), _count(len(sources), "manifest"))
            typer.echo(" in ".join(counted), err=True)
            raise typer.Exit(2)
        against = f", {len(schemas)} kinds of {crds} included" if crds else ""
        is_right = "is" if len(sources) == 1 else "are"
        found = f"{_count(len(sources), 'manifest')} in {_count(files, 'file')}"
        typer.echo(f"{found} {is_right} right{against}")


@app.command()
def secret(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print the Secret with new random tokens; pipe it into `kubectl apply -f -`."""
    with guarded(debug=False):
        from cluster.k8s.groups import kubernetes
        from cluster.k8s.manifests import token_secret
        from cluster.k8s.text import dump

        section = kubernetes(load(config, overrides))
        if sys.stdout.isatty():
            raise ConfigError("tokens are not for the screen: pipe them into kubectl apply -f -")
        tokens = {name: secrets.token_hex(32) for name in ("auth_token", "reward_token")}
        typer.echo(dump(token_secret(section, tokens)), nl=False)


@app.command()
def start(config: ConfigPath) -> None:
    """Start a run, or go on with it where its folder holds it already; entry point of a RayJob."""
    with guarded(debug=False):
        words = start_command(config, load(config, None))
        # In this process's place, so that `ray job stop` reaches it.
        os.execv(sys.executable, [sys.executable, sys.argv[0], *words])


def start_command(path: Path, config: "RunConfig") -> list[str]:
    """The words after `attune` that start the run of a YAML, or go on with it."""
    words = [COMMANDS.get(config.algorithm.name, "run"), str(path)]
    is_there = (Path(config.cluster.run_dir) / "config.yaml").exists()
    return [*words, "--resume"] if is_there else words


@app.command()
def drain(
    deadline_s: Annotated[int, typer.Option(help="Seconds until the node is taken away.")],
    address: Annotated[
        str | None, typer.Option(help="Of the cluster; the pod's RAY_ADDRESS.")
    ] = None,
) -> None:
    """Take this pod's node out of its cluster in order; preStop hook of pods that may go."""
    with guarded(debug=False):
        from cluster.k8s.drain import drain_own_node

        typer.echo(drain_own_node(deadline_s, address or os.environ.get("RAY_ADDRESS")))


def _write(made: "list[Manifest]", folder: Path) -> list[str]:
    """Write one file for each kind of object; those of an earlier rendering go."""
    from cluster.k8s.text import dump_all

    names = list(dict.fromkeys(item.file for item in made))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob("*.yaml"):
            if file.read_text(encoding="utf-8").startswith(HEADER):
                file.unlink()
            elif file.name in names:
                raise ConfigError(f"{file} was not made here; give another folder with --out")
        for name in names:
            documents = [item.document for item in made if item.file == name]
            (folder / name).write_text(HEADER + dump_all(documents), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--out {folder}: cannot be written ({error.strerror}); give another folder"
        ) from error
    return names


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
