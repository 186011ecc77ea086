"""The smallest piece of a memory plan."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Place = Literal["host", "gpu"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One reason why a process needs memory."""

    name: str
    gib: float
    remedy: str = ""
    """What the user can do to make it smaller; empty where it is as small as it gets."""
    where: Place = "host"
    phase: str = ""
    """When it is needed; empty for always. Parts of different phases take turns."""


def peak_gib(parts: Iterable[Part], where: str) -> float:
    """GiB that are needed at once: what is always there, and the largest phase."""
    always, phases = 0.0, dict[str, float]()
    for part in parts:
        if part.where != where:
            continue
        if part.phase:
            phases[part.phase] = phases.get(part.phase, 0.0) + part.gib
        else:
            always += part.gib
    return always + max(phases.values(), default=0.0)


def at_peak(parts: Iterable[Part], where: str) -> list[Part]:
    """The parts that make up the peak."""
    here = [part for part in parts if part.where == where]
    phases = {part.phase for part in here if part.phase}
    largest = max(
        phases, key=lambda phase: sum(p.gib for p in here if p.phase == phase), default=""
    )
    return [part for part in here if part.phase in ("", largest)]
