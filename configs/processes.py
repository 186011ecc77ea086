"""What processes take before they hold any model: constants, each measured, none derived.

All are proportional set sizes (of a shared page, a process's share of it) on Linux with the CPU
wheels, seen by `python -m tests.bench.memory --processes` (docs/measurements.md): ray 2.60.0, torch
2.13.0, vLLM 0.32.0, DeepSpeed 0.19.8, transformers 5.19. On a GPU the same libraries are loaded.
"""

from configs.part import Part
from configs.schema import RunConfig

MIB = 1 / 1024
"""In GiB."""

LEARNER_GIB = 505 * MIB
"""A Ray Train worker with torch, DeepSpeed, transformers and vLLM's transfer engines."""
FROZEN_GIB = 320 * MIB
"""A Ray actor with torch and transformers: a reward model or a reference."""
RULE_GIB = 195 * MIB
"""A Ray actor with numpy and pyarrow alone: a reward that is a rule."""
ENGINE_FRONT_GIB = 475 * MIB
"""The Ray actor around an engine: `AsyncLLM`, tokenizer, torch."""
ENGINE_CORE_GIB = 535 * MIB
"""Each `VLLM::EngineCore` or tensor-parallel worker."""
COMPILER_GIB = 300 * MIB
"""The C++ compiler that builds an engine's kernels at its first start on a CPU."""

DAEMONS_GIB = 485 * MIB
"""GCS, raylet, its two agents, autoscaler monitor, log monitor, dashboard without its pages, and
two idle workers."""
DASHBOARD_GIB = 190 * MIB
"""What the dashboard's pages add."""
DRIVER_GIB = 400 * MIB
"""`attune run` itself, with Ray Train and transformers' tokenizers; 475 while it starts."""
TRAIN_GIB = (265 + 5 * 117) * MIB
"""Ray Train's controller, and its five actors for preemption, barriers, autoscaling and data."""
COLLECTOR_GIB = 240 * MIB
MONITOR_GIB = 75 * MIB
"""190 with TensorBoard."""
PAGES_GIB = 75 * MIB
"""The server of the run's pages; 100 while somebody looks."""

CUDA_CONTEXT_GIB = 0.6
"""CUDA context, cuBLAS and NCCL buffers of a process on its GPU. An assumption, not measured."""


def ray_parts(config: RunConfig, *, online: bool, batch_bytes: float) -> list[Part]:
    """Ray's own processes, the driver and those that only move records.

    `batch_bytes`: of one step's experience. Where `cluster.address` names a running cluster, its
    daemons are there already.
    """
    ahead = 2 + config.algorithm.max_staleness  # being sampled, being learned from, and between
    parts = [Part(name="Ray Train", gib=TRAIN_GIB), Part(name="driver", gib=DRIVER_GIB)]
    if online:
        parts.append(Part(name="collector", gib=COLLECTOR_GIB))
        parts.append(Part(name="experience", gib=ahead * batch_bytes / 2**30))
    if config.cluster.metrics.enabled:
        remedy = "set cluster.metrics.enabled=false"
        parts.append(Part(name="monitor and pages", gib=MONITOR_GIB + PAGES_GIB, remedy=remedy))
    if config.cluster.address is None:
        parts.append(Part(name="daemons", gib=DAEMONS_GIB))
        if config.cluster.dashboard:
            remedy = "set cluster.dashboard=false"
            parts.append(Part(name="dashboard", gib=DASHBOARD_GIB, remedy=remedy))
    return parts
