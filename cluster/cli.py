"""The `attune` command: one function per command, nothing heavy imported before it is needed.

Exit codes: 0 success, 1 the run failed, 2 the user's input was refused.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cluster.commands import load, train
from cluster.dashboards.cli import app as metrics_app
from cluster.exits import failing_with_1, guarded, run_app
from cluster.k8s.cli import app as k8s_app
from cluster.run_folder import check_is_run
from cluster.serve.cli import app as serve_app
from configs.paths import absolute_paths

app = typer.Typer(
    help="Online preference alignment on Ray: sample, judge, learn, sync.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(k8s_app, name="k8s")
app.add_typer(serve_app, name="serve")
app.add_typer(metrics_app, name="metrics")

ConfigPath = Annotated[Path, typer.Argument(help="YAML of the run, or the folder of a run.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value, in place of what the YAML says.")
]
Resume = Annotated[bool, typer.Option(help="Go on from the run folder's last checkpoint.")]
DryRun = Annotated[bool, typer.Option(help="Check, print the derived plan and start nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Debug = Annotated[bool, typer.Option(help="Show tracebacks.")]


def main() -> None:
    """Entry point of the console command."""
    # DeepSpeed's offloaded Adam is built with `ninja`, which is looked for on PATH alone.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    run_app(app)


@app.command()
def sft(
    config: ConfigPath,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Fine-tune a model on demonstrations."""
    train("sft", config, overrides, resume=resume, dry_run=dry_run, debug=debug)


@app.command("reward-model")
def reward_model(
    config: ConfigPath,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Train a reward model on preference pairs."""
    train("reward_model", config, overrides, resume=resume, dry_run=dry_run, debug=debug)


@app.command()
def run(
    config: ConfigPath,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Align a policy online: sample, judge, learn, sync."""
    train(None, config, overrides, resume=resume, dry_run=dry_run, debug=debug)


@app.command()
def demo(
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder; a new one under runs/.")] = None,
    seed: Annotated[int, typer.Option(help="Of the world, the model and all sampling.")] = 0,
    resume: Annotated[bool, typer.Option(help="Go on with the demo in --out.")] = False,
    debug: Debug = False,
) -> None:
    """SFT, reward model and online RL on the built-in world, with a report.

    Overrides belong to the RL stage; `sft.section.key=value` and `reward_model.section.key=value`
    reach the stages before it.
    """
    with guarded(debug):
        from cluster.demo import run_demo

        run_demo(overrides or [], out, seed, resume=resume, debug=debug)


@app.command()
def world(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    seed: Annotated[int, typer.Option(help="Same seed, same world.")] = 0,
) -> None:
    """Write the built-in world: data as Parquet, and an untrained tiny model with its tokenizer."""
    with guarded(debug=False):
        from cluster.demo import write_world_and_model

        write_world_and_model(out, seed)
        typer.echo(f"wrote {out}")


@app.command()
def evaluate(
    config: ConfigPath,
    policy: Annotated[Path, typer.Option(help="Model folder to judge.")],
    baseline: Annotated[Path, typer.Option(help="Model folder to compare it with.")],
    overrides: Overrides = None,
    prompts: Annotated[int, typer.Option(help="Held-out prompts to answer.")] = 256,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Compare two policies on held-out prompts by the run's rewards, with confidence intervals."""
    with guarded(debug):
        from cluster.compare import compare, render

        loaded = absolute_paths(load(config, overrides))
        try:
            result = compare(loaded, policy.absolute(), baseline.absolute(), prompts)
        except (KeyboardInterrupt, RuntimeError) as error:
            if debug:
                raise
            typer.echo(f"error: {error}" if str(error) else "stopped", err=True)
            raise typer.Exit(1) from error
        typer.echo(json.dumps(result) if json_output else render(result))


@app.command()
def sample(
    config: ConfigPath,
    overrides: Overrides = None,
    *,
    out: Annotated[Path, typer.Option(help="Parquet file to write: prompt, replies, scores.")],
    policy: Annotated[
        Path | None, typer.Option(help="Model folder to sample from; the run's own model.path.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Replies to each prompt.")] = 4,
    prompts: Annotated[
        int | None, typer.Option(help="How many of data.train's prompts; all where left out.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Sample replies and judge them by the run's rewards: data for offline methods, best-of-N."""
    with guarded(debug):
        from cluster.samples import prepare, render, run_alone

        loaded = absolute_paths(load(config, overrides))
        folder = policy.absolute() if policy else Path(loaded.model.path)
        wanted = prepare(loaded, folder, out.absolute(), samples, prompts)
        with failing_with_1(wanted.out.parent, "the same command", debug):
            typer.echo(render(run_alone(wanted)))
        typer.echo(f"wrote {out}")


@app.command()
def ablate(
    file: Annotated[Path, typer.Argument(help="YAML: a base run, cells or a grid, seeds.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of all runs; runs that it holds are not run again.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Check, list all runs with their steps and start nothing.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Run methods against each other over several seeds and compare them; goes on where it was."""
    with guarded(debug):
        from cluster.ablate import check_inputs, execute, prepare, render

        plan = prepare(file, out)
        if dry_run:
            typer.echo(render(plan))
            return
        check_inputs(plan)
        again = f"attune ablate {file}" + (f" --out {out}" if out else "")
        with failing_with_1(plan.out, again, debug):
            finished = execute(plan, debug=debug)
        if not finished:
            raise typer.Exit(1)


@app.command()
def report(
    run_dir: Annotated[
        Path, typer.Argument(help="Folder of a run or of a demo; with --serve, of several runs.")
    ],
    serve: Annotated[
        bool, typer.Option("--serve", help="Show live pages in a browser until Ctrl-C.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="With --serve; a free one if left out.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="With --serve; beyond this machine a token is needed.")
    ] = None,
    open_browser: Annotated[
        bool, typer.Option("--open", help="With --serve: open them in a browser.")
    ] = False,
) -> None:
    """Write report.html of a run, finished or not, or serve its pages: docs/pages.md."""
    with guarded(debug=False):
        if serve:
            from cluster.pages.command import serve_pages

            serve_pages(run_dir, host or "127.0.0.1", port or 0, open_browser=open_browser)
            return
        if port is not None or host is not None or open_browser:
            raise ValueError("--port, --host and --open are of --serve: add it")
        from cluster.report import write_demo_report, write_report

        is_demo = (run_dir / "run" / "config.yaml").exists()
        if not is_demo:
            check_is_run(run_dir)
        typer.echo(str((write_demo_report if is_demo else write_report)(run_dir)))


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One of them, in full.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what `algorithm.name` can be; with a name: its tuple, its loss and its coefficient."""
    with guarded(debug=False):
        from cluster.methods_table import description, listing, print_description, print_list

        if json_output:
            result = listing() if name is None else description(name)
            typer.echo(json.dumps(result, ensure_ascii=False))
        elif name is None:
            print_list()
        else:
            print_description(name)


@app.command("inspect")
def inspect_command(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run.")],
    failure: Annotated[bool, typer.Option(help="Show what ended it: the failure bundle.")] = False,
    step: Annotated[
        int | None, typer.Option(min=0, help="List the groups that this step learned from.")
    ] = None,
    group: Annotated[
        int | None, typer.Option(min=0, help="Show all replies of this group, best first.")
    ] = None,
    sample: Annotated[
        str | None,
        typer.Option(metavar="STEP-GROUP-SAMPLE", help="Show one sample, token by token."),
    ] = None,
    worst: Annotated[
        int | None, typer.Option(help="Show so many samples of lowest score, of --step or of all.")
    ] = None,
    best: Annotated[int | None, typer.Option(help="The same of highest score.")] = None,
    json_output: Json = False,
) -> None:
    """Show where a run stands, what ended it, or its samples and where they came from."""
    with guarded(debug=False):
        from cluster.inspect_run import inspect_to_text
        from cluster.inspect_samples import Wanted, samples_to_text
        from configs.errors import ConfigError

        wanted = Wanted(step=step, group=group, sample=sample, worst=worst, best=best)
        if wanted.is_any and failure:
            raise ConfigError("--failure shows no samples; give it alone")
        if wanted.is_any:
            typer.echo(samples_to_text(run_dir, wanted, as_json=json_output))
        else:
            typer.echo(inspect_to_text(run_dir, failure=failure, as_json=json_output))


@app.command()
def scale(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run that goes on.")],
    engines: Annotated[str, typer.Argument(help="How many; `auto` leaves it to the run again.")],
) -> None:
    """Add rollout engines to a run that goes on, or release some."""
    with guarded(debug=False):
        from cluster.scaling import ask
        from configs.errors import ConfigError

        if engines != "auto" and not engines.isdecimal():
            raise ConfigError(
                f"ENGINES: {engines!r} is neither a number nor `auto`; give 1 or more, or auto"
            )
        check_is_run(run_dir)
        wanted = None if engines == "auto" else int(engines)
        typer.echo(ask(run_dir, load(run_dir, None), wanted))


@app.command()
def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    gpus: Annotated[
        int | None,
        typer.Option(min=0, help="Of the cluster; those of this machine where left out."),
    ] = None,
    gpu_gib: Annotated[
        float | None, typer.Option("--gpu-gib", help="Memory of one GPU, likewise.")
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(help="10^12 operations a second of one GPU or core, in use.")
    ] = None,
    json_output: Json = False,
    debug: Debug = False,
) -> None:
    """Memory and time of a run before it is launched, and a placement for it; 2 if it can't fit."""
    with guarded(debug):
        from cluster.planning import plan_run

        text, refusal = plan_run(
            load(config, overrides),
            gpus=gpus, gpu_gib=gpu_gib, tflops=tflops, as_json=json_output,
        )  # fmt: skip
        typer.echo(text)
        if refusal:
            raise ValueError(refusal)


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Argument(help="YAML of a run: look at what that run needs.")
    ] = None,
    overrides: Overrides = None,
    json_output: Json = False,
    debug: Debug = False,
) -> None:
    """Check this machine, and the cluster that CONFIG names: what is wrong, and the remedy."""
    environment = dict(os.environ)  # before a token is made for this command
    with guarded(debug):
        from cluster.doctor import examine

        findings = examine(load(config, overrides) if config else None, environment)
        if json_output:
            typer.echo(json.dumps([asdict(finding) for finding in findings]))
        else:
            typer.echo("\n".join(finding.line() for finding in findings))
        if any(finding.level == "wrong" for finding in findings):
            raise typer.Exit(1)
