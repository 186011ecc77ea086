"""What is wrong with the settings of loggers on this machine; looks, and opens nothing."""

import os
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from urllib.parse import urlsplit

from cluster.loggers.build import is_noted
from configs.errors import ConfigError
from configs.metrics import JsonlConfig, LoggersConfig, MlflowConfig, WandbConfig
from configs.schema import RunConfig

FIELD = "cluster.metrics.loggers"
WANDB_KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
WANDB_FILES = ("~/.netrc", "~/_netrc", "~/.config/wandb/settings")
"""Where `wandb login` may have left a key."""


def check_loggers(config: RunConfig) -> None:
    """Refuse loggers that are not installed here, have no place to write, or no key."""
    settings = config.cluster.metrics.loggers
    _check_installed(settings)
    if settings.jsonl is not None:
        _check_path(settings.jsonl, config)
    # A Ray of the run's own passes this environment on; what another one has is not known here.
    is_own = config.cluster.address is None
    if settings.wandb is not None and is_own:
        _check_key(settings.wandb)
    if settings.mlflow is not None and (is_own or settings.mlflow.uri):
        _check_uri(settings.mlflow)


def _check_installed(settings: LoggersConfig) -> None:
    for name in ("wandb", "mlflow"):
        if getattr(settings, name) is not None and find_spec(name) is None:
            raise ConfigError(
                f"{FIELD}.{name}: {name} is not installed; pip install 'attune[{name}]', or take "
                "it out"
            )


def _check_path(settings: JsonlConfig, config: RunConfig) -> None:
    path, field = Path(os.path.abspath(settings.path)), f"{FIELD}.jsonl.path"
    if path == Path(os.path.abspath(config.cluster.run_dir)) / "metrics.jsonl":
        raise ConfigError(f"{field}: {path} is what would be copied; give another file")
    try:
        if path.exists():
            path.open("ab").close()
        else:
            nearest = next(parent for parent in path.parents if parent.exists())
            TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise ConfigError(
            f"{field}: {path} cannot be written ({error.strerror}); give a file that can"
        ) from error
    is_ours = is_noted(config, "jsonl")
    if path.exists() and path.stat().st_size and not is_ours:
        raise ConfigError(f"{field}: {path} holds the rows of something else; give another file")


def _check_key(settings: WandbConfig) -> None:
    files = (os.environ.get("NETRC", ""), *WANDB_FILES)
    is_known = any(name in os.environ for name in WANDB_KEYS)
    is_known = is_known or any(os.path.exists(os.path.expanduser(file)) for file in files)
    if settings.mode == "online" and not is_known:
        raise ConfigError(
            f"{FIELD}.wandb: there is no key; export WANDB_API_KEY, run `wandb login`, or set "
            "mode=offline"
        )


def _check_uri(settings: MlflowConfig) -> None:
    field = f"{FIELD}.mlflow.uri"
    uri = settings.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise ConfigError(
            f"{field}: there is no place to log to; give a server or a database "
            "(sqlite:////shared/mlflow.db), or export MLFLOW_TRACKING_URI"
        )
    parts = urlsplit(uri)
    if settings.uri and "@" in parts.netloc:
        raise ConfigError(
            f"{field}: holds a user or a password, which would be kept with the run; export "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI as it is"
        )
    if parts.scheme in ("", "file") and "MLFLOW_ALLOW_FILE_STORE" not in os.environ:
        raise ConfigError(
            f"{field}: {uri} is a folder, which MLflow no longer writes to; give a database "
            f"(sqlite:///{os.path.abspath(parts.path or 'mlflow')}.db) or a server"
        )
