"""The places of a run's fleet, who fills them, and what became of the calls to them."""

import re
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError

from cluster.engines import EngineHandle


@dataclass(kw_only=True, eq=False)
class Seat:
    """A place of the fleet and who fills it."""

    name: str
    path: str
    """Model folder that it is started from."""
    engine: EngineHandle
    is_synced: bool = True
    """Whether it gets the learner's weights; not so the one that samples from the reference."""
    started: Any = None
    """The call that ends once it has loaded."""
    placed: Any = None
    """The call that ends once Ray has found room for it."""
    placed_at: float | None = None
    since: float = 0.0
    """When it was created, in seconds of the monotonic clock."""
    is_loaded: bool = False
    is_admitted: bool = False
    """Whether the present collector knows of it."""
    is_live: bool = False
    check: Any = None
    checked_at: float = 0.0
    failed_starts: int = 0
    replaces: str = ""
    """Key of who was lost here before."""
    lost_at: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Leaving:
    """An engine that hands its work over."""

    engine: EngineHandle
    call: Any
    end: float
    """When it has to be done, in seconds of the monotonic clock."""


def has_lost_its_node(call: Any) -> bool:
    """Whether a start ended with its node, or before it: that says nothing of the next one."""
    try:
        ray.get(call, timeout=0)
    except RayActorError as error:
        return re.search(r"actor's node|its node has died|never ran", str(error)) is not None
    except Exception:  # noqa: BLE001 - it failed otherwise, or is not over
        return False
    return False


def is_done(call: Any) -> bool:
    """Whether a call is over, however it went."""
    return bool(ray.wait([call], timeout=0)[0])


def failure_of(call: Any) -> str:
    """What a call that is done ended with; nothing where it went well."""
    try:
        ray.get(call)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[-1] if lines else type(error).__name__
    return ""
