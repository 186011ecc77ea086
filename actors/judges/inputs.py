"""What judges need of their files, asked before a run starts and again where they are loaded."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PLACES = re.compile(r"\{(prompt|first|second)\}")
"""Where a layout of two replies has its texts."""


def read_layout(path: str) -> str:
    """The text of a layout file; `ValueError` where it cannot be read or lacks a place."""
    try:
        layout = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); give a text file") from error
    missing = {"prompt", "first", "second"} - set(PLACES.findall(layout))
    if missing:
        raise ValueError(f"{path}: has no {{{min(missing)}}}; write where it should be put")
    return layout


def num_labels(model_config: Mapping[str, Any]) -> int:
    """Of a parsed config.json; transformers leaves its own default, 2, unwritten."""
    return len(model_config.get("id2label") or "ab")


def check_labels(where: str, path: str, num_labels: int, positive: int) -> None:
    """Refuse a folder without a choice of labels, or without the wanted one."""
    if num_labels < 2:
        raise ValueError(f"{where}: {path} has one label: it is a reward model, use kind model")
    if positive >= num_labels:
        raise ValueError(
            f"{where}: positive={positive}, but {path} has {num_labels} labels, counted from 0"
        )


def check_one_logit(where: str, path: str, num_labels: int) -> None:
    """Refuse a classifier of one text."""
    if num_labels != 1:
        raise ValueError(
            f"{where}: {path} has {num_labels} labels; a ranker has one logit, for the first reply "
            "being the better one"
        )
