"""The folder of a run: where it may be, what it says, and whether a run can go on in it."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.job_metadata import submitted_job
from configs import strict_yaml
from configs.errors import ConfigError
from configs.load import load_config, to_yaml
from configs.redaction import redact, redacted_fields
from configs.schema import RunConfig

ROOT = Path(__file__).parent.parent
PACKAGES = tuple(ROOT / name for name in ("actors", "cluster", "configs", "rl"))
MAY_CHANGE = (
    "cluster.", "algorithm.num_steps", "algorithm.tokens_per_micro_batch",
    "algorithm.optimizer.learning_rate", "algorithm.critic_optimizer.learning_rate",
    "feedback.deadline_s", "feedback.attempts",
)  # fmt: skip
"""Settings that a resumed run may be given anew: where it runs, how far, and what a failure asks to
change before the run goes on."""


def check_run_folder(config: RunConfig) -> None:
    """Refuse a `cluster.run_dir` in which a run would be lost or would overwrite something."""
    folder = Path(os.path.realpath(config.cluster.run_dir))
    say = f"cluster.run_dir: {config.cluster.run_dir}"
    if folder in (Path("/"), Path.home()):
        raise ConfigError(f"{say} holds everything else; give a folder of its own")
    for package in PACKAGES:
        if folder == package or package in folder.parents:
            raise ConfigError(f"{say} is inside the package {package}; give a folder elsewhere")
    for field, path in (("model.path", config.model.path), ("data.train", config.data.train)):
        source = Path(os.path.realpath(path))
        if source.is_dir() and (folder == source or source in folder.parents):
            raise ConfigError(f"{say} is inside {field}; give a folder elsewhere")
    for parent in folder.parents:
        if (parent / "config.yaml").exists() and (parent / "logs").is_dir():
            raise ConfigError(f"{say} is inside another run, {parent}; give a folder beside it")
    is_job, work = bool(submitted_job()), Path(os.path.realpath("."))
    if is_job and "runtime_resources" in work.parts and work in folder.parents:
        raise ConfigError(
            f"{say} is inside the job's own copy of the working directory, which Ray deletes; give "
            "an absolute path that every node and the next try can read"
        )


def stored_text(config: RunConfig) -> str:
    """config.yaml of a run: the whole configuration, secrets taken out."""
    whole = config.model_dump(mode="json")
    without = redact(whole)
    return strict_yaml.dump(without) if redacted_fields(without) else to_yaml(config)


def refuse_redacted(config: RunConfig) -> None:
    """A configuration that was read from a run folder lacks its secrets: ask for them again."""
    if fields := redacted_fields(config.model_dump(mode="json")):
        raise ConfigError(
            f"{fields[0]} is a secret, which a run folder's config.yaml does not keep; give it "
            f"again: {fields[0]}=..."
        )


def check_is_run(run_dir: Path) -> None:
    """Refuse a folder that holds no run."""
    if not (run_dir / "config.yaml").exists():
        raise ConfigError(
            f"{run_dir} holds no run: it has no config.yaml; give the folder of a run"
        )


def check_own_folder(config: RunConfig, folder: Path) -> None:
    """Refuse to go on in another folder than the one that was named: it was moved or copied."""
    if os.path.realpath(config.cluster.run_dir) != os.path.realpath(folder):
        raise ConfigError(
            f"cluster.run_dir is {config.cluster.run_dir} in {folder / 'config.yaml'}: the run was "
            f"moved or copied; add cluster.run_dir={folder} to go on here"
        )


def check_begun(config: RunConfig, *, resume: bool) -> None:
    """Refuse a folder that holds a run, unless it is resumed with the settings it began with."""
    folder = Path(config.cluster.run_dir)
    if not (folder / "config.yaml").exists():
        return
    if not resume:
        raise ConfigError(
            f"cluster.run_dir: {folder} already holds a run; resume it with --resume, or give "
            "another folder"
        )
    check_same(config, folder)


def check_same(config: RunConfig, folder: Path) -> None:
    """Refuse to resume a run with settings that it did not begin with; names the first."""
    file = folder / "config.yaml"
    stored = dict(_flat(redact(load_config(file).model_dump(mode="json"))))
    given = dict(_flat(redact(config.model_dump(mode="json"))))
    for name in [*stored, *(name for name in given if name not in stored)]:
        before, now = stored.get(name), given.get(name)
        if before != now and not name.startswith(MAY_CHANGE):
            raise ConfigError(
                f"{name} is {now!r} here, but {before!r} in {file}; a run goes on with the "
                "settings that it began with: give the same, or another cluster.run_dir"
            )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of all settings; a list counts as one value."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
