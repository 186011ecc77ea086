"""Who may command Ray: authentication mode and token."""

from collections.abc import Mapping
from pathlib import Path

from cluster.diagnosis.findings import Finding


def judge_auth(mode: str | None) -> Finding:
    """Ray's authentication mode, as the commands here would start a cluster."""
    match (mode or "token").lower():
        case "token":
            return Finding(level="ok", what="Ray asks for a token")
        case "disabled":
            remedy = "whoever reaches Ray's ports can run code; unset it"
            return Finding(level="note", what="RAY_AUTH_MODE=disabled", remedy=remedy)
    remedy = "Ray knows token and disabled; unset it"
    return Finding(level="wrong", what=f"RAY_AUTH_MODE={mode}", remedy=remedy)


def judge_token(environment: Mapping[str, str], home: Path, *, joins: bool) -> list[Finding]:
    """Where Ray's token comes from; `joins`: a running cluster, which asks for its own token.

    Never shows a token. Ray looks at RAY_AUTH_TOKEN, then RAY_AUTH_TOKEN_PATH, then its own file.
    """
    if environment.get("RAY_AUTH_MODE", "token").lower() != "token":
        return []
    if "RAY_AUTH_TOKEN" in environment:
        if environment["RAY_AUTH_TOKEN"].strip():
            return [Finding(level="ok", what="a token in RAY_AUTH_TOKEN")]
        return [Finding(level="wrong", what="RAY_AUTH_TOKEN is empty", remedy="give it, or unset")]
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named) if named else home / ".ray" / "auth_token"
    if file.is_file():
        return [_judge_token_file(file)]
    if named:
        remedy = "no such file; `ray get-auth-token --generate` makes one"
        return [Finding(level="wrong", what=f"RAY_AUTH_TOKEN_PATH={named}", remedy=remedy)]
    if joins:
        remedy = "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the token of cluster.address"
        return [Finding(level="wrong", what="no token for the cluster to join", remedy=remedy)]
    return [Finding(level="ok", what="a new token is made for each run")]


def _judge_token_file(file: Path) -> Finding:
    try:
        is_empty, mode = not file.read_text().strip(), file.stat().st_mode & 0o777
    except OSError as error:
        what = f"the token file {file} cannot be read ({error.strerror})"
        return Finding(level="wrong", what=what, remedy="give it to this user")
    if is_empty:
        remedy = "`ray get-auth-token --generate` fills it"
        return Finding(level="wrong", what=f"the token file {file} is empty", remedy=remedy)
    if mode & 0o077:
        remedy = f"others can read it; chmod 600 {file}"
        return Finding(
            level="note", what=f"the token file {file} has mode {mode:03o}", remedy=remedy
        )
    return Finding(level="ok", what=f"a token in {file}")
