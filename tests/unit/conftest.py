"""What the comparisons with trl share."""

from collections.abc import Iterator
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def side() -> Iterator[ModuleType]:
    """trl's half of a comparison; its trainers take seconds to import, so only a test does it."""
    trl = pytest.importorskip("trl")
    from accelerate.state import AcceleratorState

    from tests.unit import trl_side_by_side

    assert trl.__version__ == "1.16.0"
    yield trl_side_by_side
    AcceleratorState._reset_state(reset_partial_state=True)
