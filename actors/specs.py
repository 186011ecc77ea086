"""What models to load and where; light records that any process may import."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class FrozenSpec:
    """Which model to load, and this worker's place in its group."""

    kind: Literal["policy", "value"]
    path: str
    dtype: str
    device: str
    max_tokens: int
    """Padded tokens of one forward pass."""
    rank: int = 0
    world_size: int = 1
