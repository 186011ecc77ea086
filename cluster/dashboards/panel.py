"""What a panel is: which figures it draws, under which words. Who draws it is another matter.

Panel ─┬─▶ PromQL and Grafana's JSON   (cluster.dashboards.grafana)
       └─▶ SVG of a run folder's own figures   (cluster.dashboards.drawing)
"""

from dataclasses import dataclass

from cluster.metrics.table import BY_KEY, Metric


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One figure, or one curve for each of its labels' values."""

    key: str
    """Of `cluster.metrics.table`. A counter is drawn as its growth per second."""
    label: str
    """In the legend; may name labels, such as `{reward}` or `{actor}`."""
    where: tuple[tuple[str, str], ...] = ()
    """Only these values of labels."""
    low: str = ""
    """Keys of the edges of a shaded range around it."""
    high: str = ""
    is_total: bool = False
    """Draw how high a counter stands, not how fast it grows."""

    @property
    def is_rate(self) -> bool:
        """Whether growth per second is drawn."""
        return self.metric.kind == "counter" and not self.is_total

    @property
    def metric(self) -> Metric:
        """The figure's entry in the table."""
        return BY_KEY[self.key]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart, drawn where a run has any of its figures."""

    title: str
    unit: str
    """Beside the title; a rate is per second."""
    curves: tuple[Curve, ...]
    explanation: str = ""
    is_stacked: bool = False
    is_noisy: bool = False
    """Smoothed over time as well, where what is seen is the change of phases, not a trend."""

    @property
    def is_by_step(self) -> bool:
        """Whether it is drawn over learner steps; else over time."""
        return all(curve.metric.source == "step" for curve in self.curves)


@dataclass(frozen=True, kw_only=True)
class Section:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """One page of panels."""

    uid: str
    title: str
    description: str
    sections: tuple[Section, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """Of all sections, in order."""
        return tuple(panel for section in self.sections for panel in section.panels)


def panel(
    title: str,
    unit: str,
    *curves: tuple[str, str] | Curve,
    explanation: str = "",
    is_stacked: bool = False,
    is_noisy: bool = False,
) -> Panel:
    """A panel whose simple curves are (key, label)."""
    made = tuple(c if isinstance(c, Curve) else Curve(key=c[0], label=c[1]) for c in curves)
    return Panel(
        title=title, unit=unit, curves=made, explanation=explanation, is_stacked=is_stacked,
        is_noisy=is_noisy,
    )  # fmt: skip
