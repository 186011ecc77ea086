"""The one error that a user's settings can cause."""

from collections.abc import Iterator
from contextlib import contextmanager


class ConfigError(ValueError):
    """Settings that were refused: one short line per mistake, naming the field and the remedy."""


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Say of which setting a file is that cannot be used."""
    try:
        yield
    except ConfigError:  # names its setting
        raise
    except ValueError as error:
        raise ConfigError(f"{field}: {error}") from error
