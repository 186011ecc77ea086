"""`attune plan`: what a run will need and how long it may take, before anything is started."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from configs.errors import ConfigError, naming
from configs.machine import available_cores, available_memory
from configs.machine import gpus as present_gpus
from configs.memory import model_shape
from configs.part import at_peak
from configs.placement import Placement, propose
from configs.plan import Plan, derive, render
from configs.schema import RunConfig
from configs.timing import ASSUMED, StepTime, Throughput, step_time


def plan_run(
    config: RunConfig,
    *,
    gpus: int | None = None,
    gpu_gib: float | None = None,
    tflops: float | None = None,
    as_json: bool = False,
) -> tuple[str, str]:
    """The plan as text or JSON, and the refusal: one line, empty where the run fits.

    `gpus` and `gpu_gib` stand for the GPUs of a cluster that this machine does not have; `tflops`
    for the assumed throughput of one device. Needs of the model its config.json alone.
    """
    for option, value in (("--gpu-gib", gpu_gib), ("--tflops", tflops)):
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{option}: {value:g} is not above 0")
    if config.cluster.device == "cpu" and (gpus or gpu_gib):
        raise ConfigError(
            "--gpus and --gpu-gib are of no use: the run takes no GPU; add cluster.device=cuda"
        )
    model = read_model_config(config)
    # Whoever names a cluster, or GPUs that are not here, does not mean this machine.
    is_here = config.cluster.address is None and gpus is None and gpu_gib is None
    available, cores = (available_memory(), available_cores()) if is_here else (None, None)
    present = [gib for _, gib in present_gpus()]
    gpus = len(present) if gpus is None else gpus
    gpu_gib = min(present, default=None) if gpu_gib is None else gpu_gib
    throughput = ASSUMED[config.cluster.device]
    throughput = replace(throughput, tflops=tflops, why="as given") if tflops else throughput
    with naming(f"model.path: {config.model.path}"):
        plan = derive(config, model, available, cores=cores, one_gpu_gib=gpu_gib)
    refusal = plan.refusal or _too_few_gpus(config, plan, gpus)
    time = step_time(config, model_shape(model), throughput, cores)
    proposal = propose(
        config, model, throughput,
        gpus=gpus, one_gpu_gib=gpu_gib, available_bytes=available, cores=cores,
    )  # fmt: skip
    if as_json:
        return _json(plan, refusal, time, throughput, proposal), refusal or ""
    lines = [render(replace(plan, refusal=refusal, fits=refusal is None)), ""]
    lines += _time_lines(config, plan, time, throughput)
    lines += ["", *_proposal_lines(proposal, gpus if config.cluster.device == "cuda" else None)]
    return "\n".join(lines), refusal or ""


def read_model_config(config: RunConfig) -> Mapping[str, Any]:
    """config.json of `model.path`; its weights may be missing, or not downloaded yet."""
    file = Path(config.model.path) / "config.json"
    try:
        found = json.loads(file.read_text())
    except OSError as error:
        raise ConfigError(
            f"model.path: {file} cannot be read ({error.strerror}); give a folder with the model's "
            "config.json, its weights are not needed"
        ) from error
    except ValueError as error:
        raise ConfigError(f"model.path: {file} is not JSON; save the model again") from error
    if not isinstance(found, dict):
        raise ConfigError(f"model.path: {file} is not a JSON object; save the model again")
    return found


def _too_few_gpus(config: RunConfig, plan: Plan, gpus: int) -> str | None:
    if config.cluster.device == "cpu" or plan.gpus <= gpus + 1e-6:
        return None
    if gpus == 0 and config.cluster.address:
        return None  # they are elsewhere, and nobody said how many
    return (
        f"the run asks for {plan.gpus:g} GPUs and there are {gpus}: lower "
        "cluster.learner.num_workers or cluster.rollout.num_engines, or say --gpus of the cluster"
    )


def _time_lines(config: RunConfig, plan: Plan, time: StepTime, throughput: Throughput) -> list[str]:
    """The estimated time with what it assumes."""
    device = "GPU" if config.cluster.device == "cuda" else "core"
    phases = " + ".join(
        f"{name} {seconds:.3g}"
        for name in ("sample", "score", "train", "sync")
        if (seconds := getattr(time, name))
    )
    total = time.step * plan.num_steps
    return [
        "estimated time, not measured; sequences at their longest",
        f"  a step      {time.step:.3g} s ({phases}{', sampling ahead' * time.overlapped})",
        f"  {plan.num_steps:,} steps  {_duration(total)}, without start, validation, checkpoints",
        f"  assuming    {throughput.tflops:g} TFLOP/s a {device} in matrix products, "
        f"{throughput.memory_gb:g} GB/s of memory,",
        f"              {throughput.link_gb:g} GB/s of weights to engines, "
        f"{1000 * throughput.token_s:g} ms an engine's step:",
        f"              {throughput.why}",
    ]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _proposal_lines(proposal: Placement | None, gpus: int | None) -> list[str]:
    """The proposed placement, and how to take it up."""
    where = "this machine" if gpus is None else f"{gpus} GPUs"
    if proposal is None:
        return [f"no placement on {where} fits"]
    several = "engines" if proposal.engines > 1 else "engine"
    engines = f", {proposal.engines} {several} of tensor-parallel size {proposal.tensor_parallel}"
    lines = [
        f"proposed for {where}: {proposal.kind}, about {proposal.time.step:.3g} s a step",
        f"  ZeRO group of {proposal.learners}{engines if proposal.engines else ''}",
    ]
    if not proposal.settings:
        return [*lines, "  which is what the configuration says"]
    return [*lines, *(f"  {setting}" for setting in proposal.settings)]


def _json(
    plan: Plan,
    refusal: str | None,
    time: StepTime,
    throughput: Throughput,
    proposal: Placement | None,
) -> str:
    """Everything, for programs."""
    roles = [
        {
            **{name: getattr(role, name) for name in ("name", "count", "cpus", "gpus")},
            "host_gib": round(role.gib("host"), 4),
            "gpu_gib": round(role.gib("gpu"), 4),
            "parts": [
                asdict(part)
                | {"gib": round(part.gib, 4), "at_peak": part in at_peak(role.parts, part.where)}
                for part in role.parts
            ],
        }
        for role in plan.roles
    ]
    seconds = asdict(time) | {"step": time.step, "run": time.step * plan.num_steps}
    return json.dumps(
        asdict(plan)
        | {
            "roles": roles,
            "refusal": refusal,
            "fits": refusal is None,
            "estimated_seconds": seconds,
            "assumed": asdict(throughput),
            "proposal": None
            if proposal is None
            else asdict(proposal) | {"estimated_step_s": proposal.time.step},
        }
    )
