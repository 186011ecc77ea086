"""Relative paths of a configuration, made absolute before other processes see them."""

import os
from typing import Any

from configs.schema import RunConfig


def absolute_paths(config: RunConfig) -> RunConfig:
    """The same run with every path absolute, from this process's working folder.

    Ray's workers have working folders of their own. Suffixes (`folder:split`, `file.py:function`)
    stay as they are.
    """
    rewards = {
        name: reward.model_copy(
            update=_absolute(reward, "path", "reference", "prompt_file")
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
                | {"reward_service": service}
            ),
        }
    )


def _checkpoint(config: RunConfig) -> dict[str, Any]:
    settings = config.cluster.checkpoint
    is_url = "://" in (settings.storage or "")
    return _absolute(settings, "scratch", *() if is_url else ("storage",))


def _absolute(section: Any, *names: str) -> dict[str, Any]:
    values = {name: getattr(section, name) for name in names}
    return {name: os.path.abspath(value) for name, value in values.items() if value}
