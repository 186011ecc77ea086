"""How many engines an elastic fleet should have."""

from dataclasses import dataclass

from configs.cluster import RolloutPlacement


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

    def wanted(self, now: float, current: int, waiting: int, is_learner_waiting: bool) -> int:
        """Engines wanted, one more or one less at a time.

        One more where each has more than `groups_per_engine` to do and the learner waits for them;
        one less once the others could do all of it for `idle_s`.
        """
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
