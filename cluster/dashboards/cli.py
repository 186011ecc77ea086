"""`attune metrics`: what a run measures, and Prometheus and Grafana for it.

Nothing heavy is imported before it is needed.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from cluster.exits import guarded
from configs.errors import ConfigError

app = typer.Typer(help="Figures of runs in Prometheus and Grafana.", no_args_is_help=True)


@app.command("list")
def list_command(
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List every figure of a run: where it stands, its name in Prometheus, its unit and meaning."""
    with guarded(debug=False):
        from cluster.metrics.document import listing, print_list

        if json_output:
            typer.echo(json.dumps(listing(), ensure_ascii=False))
        else:
            print_list()


@app.command()
def install(
    out: Annotated[Path | None, typer.Option(help="Folder to write.")] = None,
    head: Annotated[
        str, typer.Option(help="HOST:PORT of Ray's dashboard, as Prometheus reaches it.")
    ] = "127.0.0.1:8265",
    grafana: Annotated[
        str, typer.Option(help="URL of Grafana, as the head and the browser reach it.")
    ] = "http://127.0.0.1:3000",
    prometheus: Annotated[
        str, typer.Option(help="URL of Prometheus, as Grafana and the head reach it.")
    ] = "http://127.0.0.1:9090",
    token_file: Annotated[
        Path | None, typer.Option(help="File with the head's token, where it asks for one.")
    ] = None,
    patch_ray_dashboard: Annotated[
        Path | None,
        typer.Option(help="Ray's default_grafana_dashboard.json: put the main panels on top."),
    ] = None,
    kubernetes: Annotated[
        bool, typer.Option("--kubernetes", help="Write Kubernetes objects instead of settings.")
    ] = False,
    namespace: Annotated[
        str, typer.Option(help="Of the Kubernetes objects: that of Grafana and Prometheus.")
    ] = "monitoring",
) -> None:
    """Write dashboards, alerts and settings for Prometheus and Grafana; any number of times."""
    with guarded(debug=False):
        from cluster.dashboards import install as files
        from cluster.dashboards.ray_dashboard import patch_file

        if out is None and patch_ray_dashboard is None:
            raise ConfigError("--out: give the folder to write, or a file to --patch-ray-dashboard")
        at = files.places(head, grafana, prometheus, token_file)
        if patch_ray_dashboard is not None:
            was_changed = patch_file(patch_ray_dashboard)
            what = "put the row Attune into" if was_changed else "the row Attune is in"
            typer.echo(f"{what} {patch_ray_dashboard}")
        if out is None:
            return
        if kubernetes:
            made = files.files_for_kubernetes(namespace)
            steps = files.next_steps_kubernetes(out, at)
        else:
            made, steps = files.files_for_programs(out, at), files.next_steps(out, at)
        num_changed = files.write(out, made)
        typer.echo(f"{out}: {len(made)} files, {num_changed} of them new or changed\n\n{steps}")
