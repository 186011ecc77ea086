"""What a reward is: settings and files, told by a service and compared by the runs that ask it.

Two rewards of one definition judge alike. A run need not have the files of a reward that a service
holds; those that it has are compared.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.schema import MODEL_KINDS, RewardConfig, RunConfig

FILES = ("path", "reference", "prompt_file", "paths")
"""Settings that name files: their contents count, not where they lie."""
PIECE, PIECES = 1 << 16, 64
"""Bytes and number of the pieces of a large file that are read."""

Definition = dict[str, Any]
"""`kind`, `settings`, `contents` (setting -> digest, or null where there is no such file here) and
`fingerprint` of all these."""


def definitions(config: RunConfig) -> dict[str, Definition]:
    """Of each named reward of a run."""
    return {
        name: definition(reward, config.model.dtype)
        for name, reward in config.feedback.rewards.items()
    }


def definition(reward: RewardConfig, dtype: str) -> Definition:
    """Of one reward, whose models compute in `dtype`; its weight is the run's own business."""
    settings = {
        field: getattr(reward, field)
        for field, info in RewardConfig.model_fields.items()
        if field not in (*FILES, "kind", "weight") and getattr(reward, field) != info.default
    }
    contents = {}
    for field in FILES:
        paths = getattr(reward, field)
        for number, path in enumerate(paths if field == "paths" else [paths] * bool(paths)):
            contents[f"{field}.{number}" if field == "paths" else field] = path
    if reward.kind == "function":
        contents["path"], _, function = str(reward.path).partition(":")
        settings["function"] = function or "reward"
    if reward.kind in MODEL_KINDS:
        settings["dtype"] = dtype
    told = {
        "kind": reward.kind,
        "settings": settings,
        "contents": {field: digest(Path(path)) for field, path in contents.items()},
    }
    text = json.dumps(told, sort_keys=True)
    return told | {"fingerprint": hashlib.sha256(text.encode()).hexdigest()[:16]}


def difference(own: Definition, other: Mapping[str, Any]) -> str | None:
    """Where two definitions differ, as `field is X, and Y at the other`; None where nowhere."""
    if own["fingerprint"] == other.get("fingerprint"):
        return None
    if own["kind"] != other.get("kind"):
        return f"kind is {own['kind']}, and {other.get('kind')} there"
    mine, theirs = own["settings"], dict(other.get("settings") or {})
    for field in sorted({*mine, *theirs}):
        if mine.get(field) != theirs.get(field):
            return f"{field} is {_shown(mine.get(field))}, and {_shown(theirs.get(field))} there"
    mine, theirs = own["contents"], dict(other.get("contents") or {})
    for field in sorted({*mine, *theirs}):
        if field not in mine or field not in theirs:
            return f"{field} is of one side alone"
        if None not in (mine[field], theirs[field]) and mine[field] != theirs[field]:
            return f"{field} has other contents there"
    return None


def _shown(value: Any) -> str:
    return "its default" if value is None else json.dumps(value)


def digest(path: Path) -> str | None:
    """Of a file, or of a model folder's configuration, tokenizer and weights; None without one.

    Of large files the length and pieces spread over them are read: training moves every weight.
    """
    if path.is_file():
        return _of_file(path)
    if not path.is_dir():
        return None
    found = [*path.glob("*.json"), *path.glob("*.safetensors"), *path.glob("*.model")]
    texts = [f"{file.name} {_of_file(file)}" for file in sorted(found)]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _of_file(path: Path) -> str:
    found, size = hashlib.sha256(), path.stat().st_size
    found.update(str(size).encode())
    with path.open("rb") as file:
        if size <= PIECE * PIECES:
            found.update(file.read())
        else:
            for number in range(PIECES):
                file.seek((size - PIECE) * number // (PIECES - 1))
                found.update(file.read(PIECE))
    return found.hexdigest()[:16]
