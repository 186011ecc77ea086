"""Numbers of learner attempts: who was replaced while it was out of reach is refused.

A learner that Ray took for dead may live on behind a cut link. Each attempt has a number of its own
(`cluster.checkpoints.manifest`) and says so when it starts; collector and engines go with the
highest they know of.
"""

from functools import lru_cache
from pathlib import Path

from cluster.errors import Fenced
from cluster.events import FILE, read_events


def latest_attempt(run_dir: str | Path) -> int:
    """The highest number that a learner of this run has started with; 0 where none has."""
    path = Path(run_dir) / FILE
    return _latest(str(run_dir), path.stat().st_size) if path.exists() else 0


@lru_cache(maxsize=4)
def _latest(run_dir: str, size: int) -> int:
    """Read once per size of the file: events are only ever added."""
    started = (event for event in read_events(run_dir) if event["kind"] == "learner_started")
    return max((event["attempt"] for event in started), default=0)


def refuse_older(attempt: int, latest: int) -> None:
    """Raise Fenced where a later attempt has begun."""
    if attempt < latest:
        raise Fenced(f"learner attempt {attempt} was replaced by attempt {latest}")
