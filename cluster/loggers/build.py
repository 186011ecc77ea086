"""Loggers from their settings."""

import json
from pathlib import Path

from cluster.loggers.protocol import MetricsLogger
from configs.redaction import redact_text
from configs.schema import RunConfig

MEMORY = "loggers"
"""Folder in the run's, in which each logger's last step is noted."""


def open_loggers(config: RunConfig) -> dict[str, MetricsLogger]:
    """The loggers of a run, by name; what they need is imported here and not before."""
    made: dict[str, MetricsLogger] = {}
    settings = config.cluster.metrics.loggers
    if settings.tensorboard is not None:
        from cluster.loggers.tensorboard import TensorBoardLogger

        made["tensorboard"] = TensorBoardLogger()
    if settings.jsonl is not None:
        from cluster.loggers.jsonl import JsonlLogger

        made["jsonl"] = JsonlLogger(settings.jsonl)
    if settings.wandb is not None:
        from cluster.loggers.wandb import WandbLogger

        made["wandb"] = WandbLogger(settings.wandb)
    if settings.mlflow is not None:
        from cluster.loggers.mlflow import MlflowLogger

        made["mlflow"] = MlflowLogger(settings.mlflow)
    return made


def target_of(config: RunConfig, name: str) -> str:
    """Where a logger logs to, as it is noted: its settings, without secrets."""
    return redact_text(getattr(config.cluster.metrics.loggers, name).model_dump_json())


def is_noted(config: RunConfig, name: str) -> bool:
    """Whether this run has logged to this very place before."""
    try:
        noted = json.loads(memory_of(config, name).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(noted, list) and noted[:1] == [target_of(config, name)]


def memory_of(config: RunConfig, name: str) -> Path:
    """The file in which a logger's last step is noted."""
    return Path(config.cluster.run_dir) / MEMORY / f"{name}.json"
