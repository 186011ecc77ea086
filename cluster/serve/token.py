"""The bearer token of a reward service: read where it is needed, kept nowhere else."""

import hashlib
import os
from pathlib import Path

from configs.errors import ConfigError
from configs.schema import RunConfig

VARIABLE = "ATTUNE_REWARD_TOKEN"
REMEDY = f"set {VARIABLE}, or cluster.reward_service.token_file to the path of a file that holds it"


def read_token(config: RunConfig) -> str | None:
    """Of the file that the configuration names, or of the environment; None where neither is.

    Raises `ConfigError` for a file that cannot be read or holds no token.
    """
    file = config.cluster.reward_service.token_file
    if file is None:
        return os.environ.get(VARIABLE, "").strip() or None
    try:
        token = Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cluster.reward_service.token_file: {file} cannot be read "
            f"({getattr(error, 'strerror', None) or 'it is not text'}): give a file with the token"
        ) from error
    if not token.isascii() or not token or any(c.isspace() for c in token):
        raise ConfigError(
            f"cluster.reward_service.token_file: {file} holds no token: put one word there"
        )
    return token


def digest_of(token: str) -> str:
    """What tokens are compared by: replicas never hold the token itself."""
    return hashlib.sha256(token.encode()).hexdigest()
