"""Small charts as inline SVG: no script, no outside address, colours from the page's style sheet.

A chart is drawn in one fixed size of user units and scales with its column. Each step carries an
invisible strip that shows a cursor and, as its <title>, the values when the pointer rests on it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise

from markupsafe import Markup

WIDTH, HEIGHT = 420, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 408, 10, 178
MAX_POINTS = 160
"""Longer series are averaged over neighbouring steps, or the page would grow with the run."""
TINY = 1e-30
"""What is nearer to zero is drawn as zero."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve: `values[i]` at learner step, or time, `steps[i]`; NaN leaves a gap."""

    name: str
    color: int
    """Which of the page's colours, from 0."""
    steps: Sequence[float]
    values: Sequence[float]
    low: Sequence[float] = ()
    """Where given, with `high`: a shaded range around the curve."""
    high: Sequence[float] = ()
    gap: float = math.inf
    """The curve is broken where its steps are further apart."""

    @property
    def last(self) -> float:
        """The newest finite value, NaN where there is none."""
        return next((v for v in reversed(self.values) if math.isfinite(v)), math.nan)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One mark of a scatter chart."""

    name: str
    """Told when the pointer rests on it."""
    color: int | None
    """Which of the page's colours; None is a hollow mark."""
    x: float
    y: float


@dataclass(frozen=True)
class Frame:
    """From data to the drawing's user units."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        """Horizontal position of a step."""
        return LEFT + (RIGHT - LEFT) * (value - self.x_low) / (self.x_high - self.x_low)

    def y(self, value: float) -> float:
        """Vertical position of a value; what lies beyond the scale is drawn at its edge."""
        inside = min(max(value, self.y_low), self.y_high)
        return BOTTOM - (BOTTOM - TOP) * (inside - self.y_low) / (self.y_high - self.y_low)


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str = "learner step",
    *,
    is_smoothed: bool = True,
) -> Markup:
    """Each series as a faint raw line under its smoothed one, with dots where points are few.

    `x_label` names what `Series.steps` counts. Without `is_smoothed` there is the line alone: how
    many engines live is no noisy reading of something else.
    """
    series = [_thinned(one) for one in series]
    tops = [v for one in series for v in [*one.values, *one.low, *one.high] if math.isfinite(v)]
    frame = _frame(series, *_padded(min(tops, default=0.0), max(tops, default=1.0)))
    marks: list[str] = []
    for one in series:
        if one.low and one.high:
            marks.append(_area(frame, one.steps, one.low, one.high, f"range c{one.color}"))
    for one in series:
        few = len(one.steps) < 12
        values = one.values
        if is_smoothed and not few:
            marks.append(_line(frame, one.steps, one.values, f"raw c{one.color}", one.gap))
            values = smoothed(one.values)
        marks.append(_line(frame, one.steps, values, f"line c{one.color}", one.gap))
        if few:
            marks.extend(_dots(frame, one.steps, one.values, one.color))
    strips = _strips(frame, series, [one.values for one in series], x_label)
    return _svg(title, frame, marks, strips, x_label)


def scatter_chart(title: str, points: Sequence[Point], x_label: str) -> Markup:
    """Marks with the edge that none lies above and left of: the highest y for at most that x."""
    xs, ys = [point.x for point in points], [point.y for point in points]
    left, right = min([0.0, *xs]), max([0.0, *xs]) or 1.0
    low, high = _padded(min(ys, default=0.0), max(ys, default=1.0))
    room = 0.08 * (high - low)
    bottom = low and low - room
    frame = _scaled(left, right + 0.04 * (right - left), bottom, high + room)
    edge = upper_left_edge(points)
    marks = [_line(frame, [p.x for p in edge], [p.y for p in edge], "edge")]
    for point in points:
        style = "hollow" if point.color is None else f"dot c{point.color}"
        told = f"{point.name}\n{x_label}: {number(point.x)}\n{number(point.y)}"
        marks.append(
            f'<circle class="{style}" cx="{frame.x(point.x):.1f}" cy="{frame.y(point.y):.1f}" '
            f'r="5"><title>{escape(told)}</title></circle>'
        )
    return _svg(title, frame, marks, [], x_label)


def upper_left_edge(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in y without going further in x, by x."""
    edge: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not edge or point.y > edge[-1].y:
            edge.append(point)
    return edge


def stacked_chart(title: str, series: Sequence[Series], x_label: str = "learner step") -> Markup:
    """Shares of a whole, one on top of the other; all series have the same steps.

    A few far outliers, such as a first step that compiles, do not flatten the rest: the scale ends
    above the others, and the hover values tell the true numbers.
    """
    series = [_thinned(one) for one in series]
    sums = [math.fsum(v if math.isfinite(v) else 0.0 for v in c) for c in _columns(series)]
    usual = sorted(sums)[int(0.95 * (len(sums) - 1))] if sums else 1.0
    top = 1.3 * usual if max(sums, default=0.0) > 2.5 * usual > 0 else max(sums, default=1.0)
    frame = _frame(series, 0.0, top or 1.0)
    marks: list[str] = []
    base = [0.0] * len(sums)
    edges: list[list[float]] = []
    for one in series:
        roof = [b + (v if math.isfinite(v) else 0.0) for b, v in zip(base, one.values, strict=True)]
        marks.append(_area(frame, one.steps, base, roof, f"stack c{one.color}"))
        edges.append(roof)
        base = roof
    return _svg(title, frame, marks, _strips(frame, series, edges, x_label), x_label)


def smoothed(values: Sequence[float]) -> list[float]:
    """A straight line fitted around each step, over about a tenth of the run.

    In the middle that is the centred moving average; at the ends, where half the window is
    missing, the line follows a trend that an average would flatten.
    """
    reach = max(1, len(values) // 20)
    return [_fitted(values, i, max(0, i - reach), i + reach + 1) for i in range(len(values))]


def _fitted(values: Sequence[float], at: int, start: int, stop: int) -> float:
    """The least-squares line through `values[start:stop]`, read off at index `at`."""
    kept = [(i, v) for i, v in enumerate(values[start:stop], start) if math.isfinite(v)]
    if not kept:
        return math.nan
    middle = sum(i for i, _ in kept) / len(kept)
    mean = math.fsum(v for _, v in kept) / len(kept)
    spread = sum((i - middle) ** 2 for i, _ in kept)
    slope = math.fsum((i - middle) * (v - mean) for i, v in kept) / spread if spread else 0.0
    return mean + slope * (at - middle)


def number(value: float) -> str:
    """A number for people: three digits, thousands with commas, `not finite` for NaN."""
    if not math.isfinite(value):
        return "not finite"
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    rounded = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return rounded.replace("-", "−")


def tick_step(low: float, high: float, count: int) -> float:
    """The round distance (1, 2 or 5 times a power of ten) that fits at most `count` times."""
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    return power * next(f for f in (1, 2, 5, 10) if (high - low) / (power * f) <= count + 1e-9)


def ticks(low: float, high: float, count: int) -> list[float]:
    """The multiples of `tick_step` from `low` to `high`."""
    step = tick_step(low, high, count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _frame(series: Sequence[Series], y_low: float, y_high: float) -> Frame:
    steps = [step for one in series for step in one.steps]
    first, last = min(steps, default=0), max(steps, default=1)
    return _scaled(first, last if last > first else first + 1, y_low, y_high)


def _scaled(x_low: float, x_high: float, y_low: float, y_high: float) -> Frame:
    grid = tick_step(y_low, y_high, 4)
    # The scale ends on a line of the grid where the data come near to it.
    y_high = math.ceil(y_high / grid - 0.02) * grid
    y_low = math.floor(y_low / grid + 0.02) * grid
    return Frame(x_low, x_high, y_low, y_high)


def _padded(low: float, high: float) -> tuple[float, float]:
    """A range with room; from zero where zero is near, so heights can be compared."""
    if math.isclose(low, high, rel_tol=1e-9, abs_tol=TINY):  # means of equal values differ a bit
        return (min(0.0, 2 * low), max(0.0, 2 * high)) if abs(high) > TINY else (0.0, 1.0)
    if 0 < low < 0.5 * high:
        low = 0.0
    if 0.5 * low < high < 0:
        high = 0.0
    return low, high


def _thinned(one: Series) -> Series:
    """At most `MAX_POINTS` points, each the mean of neighbouring ones."""
    size = math.ceil(len(one.steps) / MAX_POINTS)
    if size <= 1:
        return one
    starts = range(0, len(one.steps), size)

    def means(values: Sequence[float]) -> list[float]:
        return [_mean(values[s : s + size]) for s in starts] if values else []

    return replace(
        one,
        steps=[one.steps[s] for s in starts],
        values=means(one.values),
        low=means(one.low),
        high=means(one.high),
    )


def _mean(values: Sequence[float]) -> float:
    kept = [value for value in values if math.isfinite(value)]
    return math.fsum(kept) / len(kept) if kept else math.nan


def _columns(series: Sequence[Series]) -> list[tuple[float, ...]]:
    return list(zip(*(one.values for one in series), strict=True))


def _line(
    frame: Frame,
    steps: Sequence[float],
    values: Sequence[float],
    css: str,
    gap: float = math.inf,
) -> str:
    path, last = [], -math.inf
    for step, value in zip(steps, values, strict=True):
        if not math.isfinite(value):
            last = -math.inf
            continue
        pen = "L" if step - last <= gap and math.isfinite(last) else "M"
        path.append(f"{pen}{frame.x(step):.1f} {frame.y(value):.1f}")
        last = step
    return f'<path class="{css}" d="{"".join(path)}"/>'


def _area(
    frame: Frame, steps: Sequence[float], low: Sequence[float], high: Sequence[float], css: str
) -> str:
    columns = [
        (frame.x(step), frame.y(one), frame.y(two))
        for step, one, two in zip(steps, low, high, strict=True)
        if math.isfinite(one) and math.isfinite(two)
    ]
    there = " ".join(f"{x:.1f},{roof:.1f}" for x, _, roof in columns)
    back = " ".join(f"{x:.1f},{floor:.1f}" for x, floor, _ in reversed(columns))
    return f'<polygon class="{css}" points="{there} {back}"/>'


def _dots(frame: Frame, steps: Sequence[float], values: Sequence[float], color: int) -> list[str]:
    return [
        f'<circle class="dot c{color}" cx="{frame.x(step):.1f}" cy="{frame.y(value):.1f}" r="2.5"/>'
        for step, value in zip(steps, values, strict=True)
        if math.isfinite(value)
    ]


def _strips(
    frame: Frame,
    series: Sequence[Series],
    heights: Sequence[Sequence[float]],
    x_label: str = "learner step",
) -> list[str]:
    """One strip per step with a value: cursor, dots and <title>; `heights` place the dots."""
    found: dict[float, list[tuple[Series, float, float]]] = {}
    for one, places in zip(series, heights, strict=True):
        for step, value, place in zip(one.steps, one.values, places, strict=True):
            found.setdefault(step, []).append((one, value, place))
    steps = sorted(found)
    xs = [frame.x(step) for step in steps]
    borders = [LEFT, *((a + b) / 2 for a, b in pairwise(xs)), RIGHT]
    unit = x_label.rpartition(" ")[2]
    strips = []
    for i, step in enumerate(steps):
        words = [f"{one.name}: {number(value)}" for one, value, _ in found[step]]
        dots = "".join(
            f'<circle class="dot c{one.color}" cx="{xs[i]:.1f}" cy="{frame.y(place):.1f}" r="3"/>'
            for one, value, place in found[step]
            if math.isfinite(value)
        )
        strips.append(
            f'<g class="strip"><title>{escape(chr(10).join([f"{unit} {step:,}", *words]))}</title>'
            f'<rect x="{borders[i]:.1f}" y="{TOP}" width="{borders[i + 1] - borders[i]:.1f}" '
            f'height="{BOTTOM - TOP}"/><path d="M{xs[i]:.1f} {TOP}V{BOTTOM}"/>{dots}</g>'
        )
    return strips


def _axes(frame: Frame, x_label: str) -> list[str]:
    marks = []
    values = ticks(frame.y_low, frame.y_high, 5)
    label = _tick_label(values)
    for value in values:
        y = frame.y(value)
        marks.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{RIGHT}"/>')
        marks.append(f'<text class="y" x="{LEFT - 6}" y="{y + 4:.1f}">{label(value)}</text>')
    along = ticks(frame.x_low, frame.x_high, 6)
    counted = isinstance(frame.x_low, int)  # steps; a quantity may lie between whole numbers
    below = (lambda value: f"{value:,.0f}") if counted else _tick_label(along)
    for step in [value for value in along if not counted or value == int(value)]:
        x = frame.x(step)
        marks.append(f'<path class="tick" d="M{x:.1f} {BOTTOM}v4"/>')
        marks.append(f'<text class="x" x="{x:.1f}" y="{BOTTOM + 17}">{below(step)}</text>')
    marks.append(
        f'<text class="x" x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 2}">{escape(x_label)}</text>'
    )
    return marks


def _tick_label(values: Sequence[float]) -> Callable[[float], str]:
    """One format for all ticks of an axis, with as many digits as their distance needs."""
    largest = max((abs(value) for value in values), default=0.0)
    if largest and not 1e-3 <= largest < 1e5:
        return lambda value: (
            "0"
            if value == 0
            else f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−")
        )
    grid = values[1] - values[0] if len(values) > 1 else largest or 1.0
    digits = max(0, -math.floor(math.log10(grid) + 1e-9))
    return lambda value: f"{value + 0.0:,.{digits}f}".replace("-", "−")


def _svg(
    title: str,
    frame: Frame,
    marks: list[str],
    strips: list[str],
    x_label: str = "learner step",
) -> Markup:
    inside = "".join([*_axes(frame, x_label), *marks, *strips])
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{inside}</svg>"
    )
