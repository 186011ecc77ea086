"""Relative paths of a configuration, made absolute before other processes see them."""

import os
from collections.abc import Iterator
from typing import Any

from configs.metrics import MetricsConfig
from configs.schema import RunConfig

REWARD_PATHS = ("path", "reference", "prompt_file")
"""Settings of a reward that name one file or folder."""
SQLITE = "sqlite:///"
"""A path follows, absolute or not."""


def absolute_paths(config: RunConfig) -> RunConfig:
    """The same run with every path absolute, from this process's working folder.

    Ray's workers have working folders of their own. Suffixes (`folder:split`, `file.py:function`)
    stay as they are.
    """
    rewards = {
        name: reward.model_copy(
            update=_absolute(reward, *REWARD_PATHS)
            | {"paths": tuple(map(os.path.abspath, reward.paths))}
        )
        for name, reward in config.feedback.rewards.items()
    }
    service = config.cluster.reward_service
    service = service.model_copy(update=_absolute(service, "token_file"))
    return config.model_copy(
        update={
            "model": config.model.model_copy(
                update=_absolute(config.model, "path", "reference", "critic")
                | {"extra_references": tuple(map(os.path.abspath, config.model.extra_references))}
            ),
            "data": config.data.model_copy(update=_absolute(config.data, "train", "validation")),
            "feedback": config.feedback.model_copy(update={"rewards": rewards}),
            "cluster": config.cluster.model_copy(
                update=_absolute(config.cluster, "run_dir")
                | {"checkpoint": config.cluster.checkpoint.model_copy(update=_checkpoint(config))}
                | {"reward_service": service, "metrics": _metrics(config)}
            ),
        }
    )


def path_settings(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Every path of a configuration that is given: the setting's dotted name, and its value."""
    model, data = config.model, config.data
    single = {
        "model.path": model.path,
        "model.reference": model.reference,
        "model.critic": model.critic,
        "data.train": data.train,
        "data.validation": data.validation,
        "cluster.run_dir": config.cluster.run_dir,
        "cluster.checkpoint.storage": config.cluster.checkpoint.storage,
        "cluster.reward_service.token_file": config.cluster.reward_service.token_file,
    }
    if (copy := config.cluster.metrics.loggers.jsonl) is not None:
        single["cluster.metrics.loggers.jsonl.path"] = copy.path
    several = {"model.extra_references": model.extra_references}
    for name, reward in config.feedback.rewards.items():
        at = f"feedback.rewards.{name}"
        single |= {f"{at}.{key}": getattr(reward, key) for key in REWARD_PATHS}
        several[f"{at}.paths"] = reward.paths
    yield from ((name, value) for name, value in single.items() if value)
    yield from ((name, value) for name, values in several.items() for value in values)


def missing_paths(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Those of a run's inputs that do not exist: the setting's dotted name, and its value."""
    # A service has its rewards' folders; the run's own folder is made.
    elsewhere = ("cluster.", "feedback.rewards.") if config.feedback.service else ("cluster.",)
    for name, value in path_settings(config):
        if not name.startswith(elsewhere) and not any(
            os.path.exists(path) for path in (value, value.rpartition(":")[0])
        ):
            yield name, value


def _checkpoint(config: RunConfig) -> dict[str, Any]:
    settings = config.cluster.checkpoint
    is_url = "://" in (settings.storage or "")
    return _absolute(settings, "scratch", *() if is_url else ("storage",))


def _metrics(config: RunConfig) -> MetricsConfig:
    """With the file of one logger, and the database of another, absolute."""
    metrics, loggers = config.cluster.metrics, config.cluster.metrics.loggers
    found = {}
    if loggers.jsonl is not None:
        found["jsonl"] = loggers.jsonl.model_copy(update=_absolute(loggers.jsonl, "path"))
    if loggers.mlflow is not None and (loggers.mlflow.uri or "").startswith(SQLITE):
        uri = SQLITE + os.path.abspath(str(loggers.mlflow.uri).removeprefix(SQLITE))
        found["mlflow"] = loggers.mlflow.model_copy(update={"uri": uri})
    return metrics.model_copy(update={"loggers": loggers.model_copy(update=found)})


def _absolute(section: Any, *names: str) -> dict[str, Any]:
    values = {name: getattr(section, name) for name in names}
    return {name: os.path.abspath(value) for name, value in values.items() if value}
