"""How many engines a fleet should have: what the work asks for, or what a person asked for.

attune scale RUN 3 ─▶ RUN/fleet.json ─▶ read at each of the supervisor's looks
"""

import json
from dataclasses import dataclass
from pathlib import Path

from cluster.driver_record import driver_lives
from cluster.files import replace_text
from configs.cluster import RolloutPlacement
from configs.errors import ConfigError
from configs.schema import OFFLINE, RunConfig

FILE = "fleet.json"


@dataclass(kw_only=True)
class Sizing:
    """Decides from the groups that wait and from whether the learner does.

    >>> # sizing.wanted(now, current=1, waiting=40, is_learner_waiting=True)
    """

    placement: RolloutPlacement
    idle_since: float | None = None
    """Since when the fleet has had too little to do, in seconds of a monotonic clock."""

    @property
    def is_elastic(self) -> bool:
        """Whether the fleet may change its size."""
        return self.fewest < self.most

    @property
    def fewest(self) -> int:
        """Engines below which it never falls."""
        return self.placement.min_engines or self.placement.num_engines

    @property
    def most(self) -> int:
        """Engines above which it never rises."""
        return self.placement.max_engines or self.placement.num_engines

    def wanted(
        self,
        now: float,
        current: int,
        waiting: int,
        is_learner_waiting: bool,
        asked: int | None = None,
    ) -> int:
        """Engines wanted, one more or one less at a time.

        As many as a person asked for, if somebody did. Else:

        One more where each has more than `groups_per_engine` to do and the learner waits for them;
        one less once the others could do all of it for `idle_s`.
        """
        if asked is not None:
            self.idle_since = None
            goal = min(max(1, asked), self.most)
            return current + (goal > current) - (goal < current)
        share = self.placement.groups_per_engine
        if waiting > current * share and is_learner_waiting:
            self.idle_since = None
            return min(self.most, current + 1)
        if current <= self.fewest or waiting > (current - 1) * share:
            self.idle_since = None
            return max(self.fewest, current)
        self.idle_since = now if self.idle_since is None else self.idle_since
        if now - self.idle_since < self.placement.idle_s:
            return current
        self.idle_since = None
        return current - 1


def ask(run_dir: Path, config: RunConfig, engines: int | None) -> str:
    """Note how many engines a person wants a run to have; None leaves it to the run again.

    Returns what will come of it; raises ConfigError where the run cannot have so many.
    """
    sizing = Sizing(placement=config.cluster.rollout)
    if config.algorithm.name in OFFLINE:
        raise ConfigError(f"{run_dir}: algorithm.name={config.algorithm.name} has no engines")
    if (run_dir / "summary.json").exists():
        raise ConfigError(f"{run_dir}: the run has ended")
    if engines is None:
        (run_dir / FILE).unlink(missing_ok=True)
        return (
            f"{run_dir}: the run sizes its fleet by itself, from {sizing.fewest} to {sizing.most}"
        )
    if not 1 <= engines <= sizing.most:
        most = (
            f"{sizing.most}, the larger of cluster.rollout.num_engines and max_engines; more need "
            "a run that was begun with more"
        )
        raise ConfigError(
            f"ENGINES: {engines} is more than {most}"
            if engines
            else f"ENGINES: a run needs at least 1 engine and can have {sizing.most}"
        )
    replace_text(run_dir / FILE, json.dumps({"engines": engines}))
    are = "engine is" if engines == 1 else "engines are"
    said = f"{run_dir}: {engines} {are} asked for, until `attune scale {run_dir} auto`"
    if driver_lives(run_dir):
        return said
    return f"{said}; no run goes on there on this machine: if it was stopped, once it is resumed"


def asked(run_dir: str | Path) -> int | None:
    """What a person asked for last, if it still holds."""
    try:
        return int(json.loads((Path(run_dir) / FILE).read_text())["engines"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
