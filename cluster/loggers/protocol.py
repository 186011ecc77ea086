"""What every logger offers, and what it is told of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

CLOCK = "unix_time"
"""When a step ended, in rows that say so: a time, and no figure to be charted."""


def figures(metrics: Mapping[str, float]) -> dict[str, float]:
    """What of a row is worth a chart."""
    return {name: value for name, value in metrics.items() if name != CLOCK}


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Who logs; the same whenever the run goes on."""

    run_id: str
    """Letters and digits of this run in this logger, and of no other."""
    name: str
    """For people: the name of the run's folder."""
    run_dir: Path
    config: Mapping[str, Any]
    """The whole configuration, secrets taken out."""


class MetricsLogger(Protocol):
    """One place where a run's figures are kept or shown.

    A step that is logged twice would be shown twice, so a logger says what it has:

    >>> held = logger.begin(facts, last_step=None)  # doctest: +SKIP
    >>> for step in (1, 2, 3):
    ...     logger.log(step, time.time(), {"reward/total/mean": 0.4})
    >>> logger.rewind(1)  # steps 2 and 3 are run again
    1
    >>> logger.log(2, time.time(), {"reward/total/mean": 0.5})
    >>> logger.close(finished=True)

    `begin`, `log` and `close` may take long, and raise whatever they like: they are called in a
    thread of their own, and again later. After an error the logger is closed and begun anew.
    """

    def begin(self, facts: RunFacts, last_step: int | None) -> int:
        """Open the run's record, or go on with it.

        `last_step` is the newest step that is known to have arrived: None in a run that was never
        logged here. Returns the newest step that the record holds, which is `last_step` where it
        can forget what came later.
        """
        ...

    def log(self, step: int, unix_time: float, metrics: Mapping[str, float]) -> None:
        """Keep one row of metrics.jsonl, all but its step: each step once, in order. Once this
        returns, the row is written or sent."""
        ...

    def rewind(self, step: int) -> int:
        """Forget what came after `step`, since it is run again.

        Returns the newest step that is still held: more than `step` where nothing can be forgotten.
        """
        ...

    def close(self, *, finished: bool) -> None:
        """Let go of everything; `finished`: the run is at its end, not only interrupted."""
        ...
