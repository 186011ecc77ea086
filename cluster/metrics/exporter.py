"""A run's figures as Prometheus metrics through Ray, named as `cluster.metrics.table` says.

Counters begin with what happens from now on: what a run folder held before was counted by another
process, whose last value Ray and Prometheus keep. Gauges are set again and again: one that is not
set is gone from Ray's exports after two of them, also where a slow run has nothing new to tell.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ray.util import metrics as ray_metrics

from cluster.metrics.labels import labels_of
from cluster.metrics.table import ACTOR, BY_KEY, STALENESS_BOUNDS, Metric, find
from cluster.metrics.telemetry import Told, unix_now

EVENTS = "events/{kind}"
CLOCK = "unix_time"


class Exporter:
    """Sets Ray's metrics for one run, from one process.

    >>> # exporter = Exporter("first", config); exporter.steps(rows); exporter.told(role, lines)
    """

    def __init__(self, run: str, config: Mapping[str, Any]) -> None:
        """`run` is the label of all figures, `config` the run's configuration as plain values."""
        self.run, self.config = run, config
        self.is_counting = False
        """Whether what comes is new; before, it only tells where counters stand."""
        self.began = unix_now()
        """No run stood still before that."""
        self._last_step = 0.0
        self._made: dict[str, Any] = {}
        self._stood: dict[tuple[str, str], float] = {}
        """(key, role) -> where a process's own counter stood."""
        self._gauges: dict[tuple[str, str], dict[tuple[str, ...], float]] = {}
        """(role, metric) -> labels' values -> newest value; figures of steps have no role."""
        self._gauge("", BY_KEY[CLOCK], {}, self.began)

    # ---- what comes in ---------------------------------------------------------------------

    def steps(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of metrics.jsonl; of gauges the newest counts, in histograms each step once."""
        newest: dict[str, float] = {}
        for row in rows:
            figures = {key: float(value) for key, value in row.items() if _is_number(value)}
            newest |= figures
            if figures["step"] > self._last_step:
                self._last_step = figures["step"]
                for key, value in figures.items():
                    self._observe(key, value)
        if CLOCK in newest:  # a run that goes on begins now: what was last night is no standstill
            newest[CLOCK] = max(newest[CLOCK], self.began)
        for key, value in newest.items():
            found = find(key)
            if found is not None and found[0].kind == "gauge" and found[0].source == "step":
                self._gauge("", found[0], labels_of(key, self.config), value)

    def _observe(self, key: str, count: float) -> None:
        """`count` replies of one age, as observations of a histogram."""
        found = find(key)
        if not self.is_counting or found is None or found[0].kind != "histogram":
            return
        metric, labels = found
        # Ray takes no 0, and drops what is not above it: an age of 0 lies in the first bucket.
        age = max(float(labels["age"]), STALENESS_BOUNDS[0] / 2)
        for _ in range(int(count)):
            self._of(metric).observe(age, tags=self._tags({}))

    def told(self, role: str, lines: Iterable[Told]) -> None:
        """Lines of one role's telemetry."""
        values: dict[str, float] = {}
        for line in lines:
            values |= line.values
        for key, value in values.items():
            found = find(key)
            if found is None:
                continue
            metric = found[0]
            labels = found[1] | ({ACTOR: role} if metric.per_actor else {})
            if metric.kind == "counter":
                self._count(metric, labels, self._grown(key, role, value))
            else:
                self._gauge(role, metric, labels, value)

    def _grown(self, key: str, role: str, value: float) -> float:
        """By how much a process's counter grew; one that fell was started anew from 0."""
        stood = self._stood.get((key, role), 0.0)
        self._stood[key, role] = value
        return value - stood if value >= stood else value

    def events(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Lines of events.jsonl."""
        for event in events:
            self._count(BY_KEY[EVENTS], {"kind": str(event.get("kind"))}, 1.0)

    def silent(self, role: str) -> None:
        """A process tells nothing any more: its gauges are gone."""
        for key in [key for key in self._gauges if key[0] == role]:
            del self._gauges[key]

    # ---- what goes out ---------------------------------------------------------------------

    def show(self) -> None:
        """Set every gauge to its newest value; to be called more often than Ray exports."""
        for (_, key), values in self._gauges.items():
            metric = BY_KEY[key]
            for labels, value in values.items():
                tags = self._tags(dict(zip(metric.labels, labels, strict=True)))
                self._of(metric).set(value, tags=tags)

    def _gauge(self, role: str, metric: Metric, labels: Mapping[str, str], value: float) -> None:
        values = self._gauges.setdefault((role, metric.key), {})
        values[tuple(labels[name] for name in metric.labels)] = value

    def _count(self, metric: Metric, labels: Mapping[str, str], grown: float) -> None:
        if self.is_counting and grown > 0:  # Ray takes no 0
            self._of(metric).inc(grown, tags=self._tags(labels))

    def _tags(self, labels: Mapping[str, str]) -> dict[str, str]:
        return {"run": self.run, **labels}

    def _of(self, metric: Metric) -> Any:
        if metric.name not in self._made:
            names = () if metric.kind == "histogram" else metric.labels
            options: dict[str, Any] = {"description": metric.help, "tag_keys": ("run", *names)}
            kinds = {"gauge": ray_metrics.Gauge, "counter": ray_metrics.Counter}
            if metric.kind == "histogram":
                bounds = list(STALENESS_BOUNDS)
                made = ray_metrics.Histogram(metric.name, boundaries=bounds, **options)
            else:
                made = kinds[metric.kind](metric.name, **options)
            self._made[metric.name] = made
        return self._made[metric.name]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
