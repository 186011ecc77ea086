"""Files that are whole or not there."""

import os
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old text or the new one, nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text)
        partial.replace(path)
    except OSError:  # a full disk gets its room back
        partial.unlink(missing_ok=True)
        raise
