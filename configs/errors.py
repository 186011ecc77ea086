"""The one error that a user's settings can cause."""


class ConfigError(ValueError):
    """Settings that were refused: one short line per mistake, naming the field and the remedy."""
