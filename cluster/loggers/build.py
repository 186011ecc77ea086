"""Loggers from their settings."""

from pathlib import Path

from cluster.loggers.protocol import MetricsLogger
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


def memory_of(config: RunConfig, name: str) -> Path:
    """The file in which a logger's last step is noted."""
    return Path(config.cluster.run_dir) / MEMORY / f"{name}.json"
