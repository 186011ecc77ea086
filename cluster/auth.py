"""Token authentication of a Ray cluster of our own; must run before Ray is imported."""

import os
import secrets
import sys
from pathlib import Path


def ensure_token() -> None:
    """Switch token authentication on unless the user's environment says otherwise.

    The token lives in this process and its children. Ray reads these variables when it is
    imported, and its default depends on files that other programs may have left: so both are set
    explicitly, and first.
    """
    mode = os.environ.get("RAY_AUTH_MODE")
    assert mode is not None or "ray" not in sys.modules, "ensure_token() must precede import ray"
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    has_token = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or (
        Path.home() / ".ray" / "auth_token"
    ).exists()
    if os.environ["RAY_AUTH_MODE"] == "token" and not has_token:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
