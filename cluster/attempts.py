"""Numbers of learner attempts: who was replaced while it was out of reach is refused.

A learner that Ray took for dead may live on behind a cut link. Each attempt has a number of its own
(`cluster.checkpoints.manifest`) and says so when it starts; collector and engines go with the
highest they know of.
"""

from pathlib import Path

from cluster.errors import Fenced
from cluster.events import read_events


def latest_attempt(run_dir: str | Path) -> int:
    """The highest number that a learner of this run has started with; 0 where none has."""
    started = (event for event in read_events(run_dir) if event["kind"] == "learner_started")
    return max((event["attempt"] for event in started), default=0)


def refuse_older(attempt: int, latest: int) -> None:
    """Raise Fenced where a later attempt has begun."""
    if attempt < latest:
        raise Fenced(f"learner attempt {attempt} was replaced by attempt {latest}")
