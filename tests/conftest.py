"""Fixtures that tests of several folders share: tiny models on disk, and real process groups."""

import os

# Before any import of ray: it reads these once.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.processes import Ranks

ModelFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> ModelFolder:
    """`model_folder(family, tied=False)`: a tiny random policy and its tokenizer, written once.

    Families are `llama` and `qwen3`; both have hidden size 64, 2 layers and 128 tokens.
    """
    from tests.integration.toy import write_policy

    folders: dict[tuple[str, bool], Path] = {}

    def folder(family: str = "qwen3", *, tied: bool = False) -> Path:
        key = (family, tied)
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("models") / f"{family}{'-tied' * tied}"
            write_policy(folders[key], family, tied=tied)
        return folders[key]

    return folder


@pytest.fixture(scope="session")
def judge_folder(tmp_path_factory) -> Path:
    """A tiny random reward model (Qwen3, one label) and its tokenizer."""
    from tests.integration.toy import write_judge

    folder = tmp_path_factory.mktemp("models") / "judge"
    write_judge(folder)
    return folder


@pytest.fixture(scope="session")
def one_rank() -> Iterator[Ranks]:
    """A process group of one, kept for the whole session."""
    with Ranks(1) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    """A process group of two, kept for the whole session."""
    with Ranks(2) as ranks:
        yield ranks
