"""Secrets out of text, settings and environments: logs, stored configurations, failure bundles.

Three things give a secret away: the name it stands behind, its own shape, and that a variable of
this process's environment holds it. Names that only point to a secret (`..._path`, `..._file`,
`..._env`) stay readable, and so do numbers: `num_tokens=120` is no token.
"""

import logging
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

REDACTED = "[redacted]"
SECRET_WORDS = (
    "token", "tokens", "password", "passwd", "pwd", "passphrase", "secret", "secrets", "apikey",
    "credential", "credentials", "authorization", "cookie", "bearer",
)  # fmt: skip
SECRET_PAIRS = ("api_key", "access_key", "private_key", "secret_key", "signing_key", "auth_key")
SPECIAL = ("pad", "eos", "bos", "unk", "mask", "sep", "cls", "stop", "image")
"""`eos_token` and its kin are words of a tokenizer."""
SHORTEST = 8
"""A value of the environment that is shorter may be part of any word."""
WORKING_FOLDER = "PWD"
"""A shell's variable, which holds no password."""
_ENDINGS = (
    "token", "password", "passwd", "pwd", "passphrase", "secret", r"api[_\-]?key",
    r"access[_\-]?key", r"private[_\-]?key", "credentials?", "cookie",
)  # fmt: skip
_NAME = rf"[A-Za-z0-9_.\-]*(?:{'|'.join(_ENDINGS)})"
_BEHIND_NAME = re.compile(
    rf"(?P<name>{_NAME})(?P<between>[\"']?\s*[=:]\s*[\"']?)(?P<value>[^\s\"',;&<>\[\]{{}}]{{6,}})",
    re.IGNORECASE,
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
_SHAPES: tuple[tuple[re.Pattern[str], str], ...] = (
    (_PRIVATE_KEY, REDACTED),
    # user:password@ of a URL; the user alone tells little, but may be a token.
    (re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.\-]*://)[^\s/@\"']+@", re.IGNORECASE),
     rf"\g<scheme>{REDACTED}@"),
    (re.compile(r"(?P<kind>\b(?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=\-]{6,}", re.IGNORECASE),
     rf"\g<kind>{REDACTED}"),
    (re.compile(r"\beyJ[\w\-]{8,}\.[\w\-]{8,}\.[\w\-]+"), REDACTED),  # a JSON web token
    (re.compile(r"\b(?:hf_|sk-|ghp_|gho_|ghs_|github_pat_|glpat-|xox[abprs]-)[\w\-]{16,}"),
     REDACTED),
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), REDACTED),
)  # fmt: skip


def is_secret_name(name: str) -> bool:
    """Whether what stands behind a setting or variable of this name is meant for nobody.

    >>> [is_secret_name(name) for name in ("HF_TOKEN", "eos_token", "num_tokens", "token_path")]
    [True, False, False, False]
    """
    words = [word for word in re.split(r"[_.\-\s]+", name.lower()) if word]
    if not words:
        return False
    if words[-1] == "token" and len(words) > 1 and words[-2] in SPECIAL:
        return False
    if words[-1] == "tokens" and len(words) > 1:  # num_tokens, max_new_tokens
        return False
    return words[-1] in SECRET_WORDS or "_".join(words[-2:]) in SECRET_PAIRS


def known_secrets(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Values of secret variables of an environment (this process's own by default), longest first.

    Replacing the longest first leaves no end of one that begins with another.
    """
    variables = os.environ if environment is None else environment
    values = {
        value
        for name, value in variables.items()
        if is_secret_name(name)
        and name != WORKING_FOLDER
        and len(value) >= SHORTEST
        and not value.isdigit()
    }
    return tuple(sorted(values, key=len, reverse=True))


def redact_text(text: str, secrets: Iterable[str] | None = None) -> str:
    """The text without what looks like a secret, nor any of `secrets`.

    `secrets`: values to take out wherever they stand; this process's environment by default.
    """
    for secret in known_secrets() if secrets is None else secrets:
        text = text.replace(secret, REDACTED)
    for pattern, replacement in _SHAPES:
        text = pattern.sub(replacement, text)
    return _BEHIND_NAME.sub(_without_value, text)


def _without_value(match: re.Match[str]) -> str:
    name, between, value = match["name"], match["between"], match["value"]
    is_number = re.fullmatch(r"[-+]?[\d.,]+(?:e[-+]?\d+)?", value, re.IGNORECASE)
    if is_number or not is_secret_name(name):
        return match[0]
    # `Authorization: Bearer x` was taken care of; the word before the secret is none.
    if value.lower() in ("bearer", "basic", "disabled", "missing", "invalid", "unknown"):
        return match[0]
    return f"{name}{between}{REDACTED}"


def redact(value: Any, name: str = "", secrets: Iterable[str] | None = None) -> Any:
    """Settings or any JSON-like value, with the texts behind secret names and in URLs taken out."""
    found = known_secrets() if secrets is None else tuple(secrets)
    if isinstance(value, Mapping):
        return {key: redact(item, str(key), found) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item, name, found) for item in value]
    if not isinstance(value, str) or not value:
        return value
    return REDACTED if is_secret_name(name) else redact_text(value, found)


def redacted_fields(value: Any, name: str = "") -> list[str]:
    """Dotted names of the settings that were redacted, in order."""
    if isinstance(value, Mapping):
        items = [(f"{name}.{key}" if name else str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"{name}.{index}", item) for index, item in enumerate(value)]
    else:
        return [name] if isinstance(value, str) and REDACTED in value else []
    return [field for key, item in items for field in redacted_fields(item, key)]


class RedactingFormatter(logging.Formatter):
    """Formats log records, tracebacks included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The line as it is written."""
        return redact_text(super().format(record))
