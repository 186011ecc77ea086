"""Positions and labels of the charts, worked out by hand."""

import math
import re

import pytest

from cluster.charts import (
    Point,
    Series,
    line_chart,
    number,
    scatter_chart,
    smoothed,
    stacked_chart,
    ticks,
    upper_left_edge,
)


def series(values, **rest):
    return Series(name="a", color=0, steps=range(1, len(values) + 1), values=values, **rest)


def test_ticks_are_round_and_inside():
    assert ticks(0.41, 0.73, 5) == pytest.approx([0.5, 0.6, 0.7])
    assert ticks(-1.0, 1.0, 4) == pytest.approx([-1, -0.5, 0, 0.5, 1])
    assert ticks(0, 60, 6) == pytest.approx([0, 10, 20, 30, 40, 50, 60])


def test_a_rising_line_rises_on_the_page():
    drawn = re.search(r'class="line c0" d="([^"]*)"', line_chart("t", [series([1.0, 2.0, 4.0])]))
    assert drawn
    points = re.findall(r"([\d.]+) ([\d.]+)", drawn.group(1))
    xs, ys = [float(x) for x, _ in points], [float(y) for _, y in points]
    assert xs == [46, 227, 408]  # the left edge, the middle and the right edge of the plot
    assert ys == [136, 94, 10]  # 178 - 168 * value / 4: the scale goes from 0 to 4


def test_stacked_areas_add_up():
    one, two = series([1.0, 1.0]), Series(name="b", color=1, steps=[1, 2], values=[3.0, 3.0])
    drawn = re.findall(r'class="stack c\d" points="([^"]*)"', stacked_chart("t", [one, two]))
    heights = [{float(point.split(",")[1]) for point in area.split()} for area in drawn]
    assert heights == [{178, 136}, {136, 10}]  # 0 to 1 of 4, then 1 to 4 of 4


def test_marks_of_a_scatter_lie_at_their_values():
    points = [Point(name="a", color=0, x=2.0, y=1.0), Point(name="b", color=None, x=0.0, y=0.5)]
    drawn = scatter_chart("t", points, "KL")
    # From 0 to 2.08: 46 + 362 * 2 / 2.08; a hollow mark stands at the left edge.
    assert 'class="dot c0" cx="394.1"' in drawn
    assert 'class="hollow" cx="46.0"' in drawn
    assert "<title>a\nKL: 2\n1</title>" in drawn


def test_the_edge_joins_what_no_other_point_beats():
    xy = [(0, 1), (1, 3), (2, 2), (3, 4), (3, 3.5), (4, 4)]
    points = [Point(name="", color=0, x=x, y=y) for x, y in xy]
    assert [(p.x, p.y) for p in upper_left_edge(points)] == [(0, 1), (1, 3), (3, 4)]


def test_an_axis_says_what_it_counts():
    drawn = line_chart("t", [series([1.0, 2.0])], "judged replies")
    assert ">judged replies</text>" in drawn
    assert "<title>replies 2\na: 2</title>" in drawn


def test_smoothing_keeps_a_straight_line_to_its_ends():
    line = [0.5 * i for i in range(60)]
    assert smoothed(line) == pytest.approx(line)


def test_smoothing_averages_around_a_step_and_extends_the_trend_at_the_ends():
    # Reach 1. In the middle the mean of three; at an end the line through the last two.
    assert smoothed([0.0, 9.0, 0.0, 3.0]) == pytest.approx([0, 3, 4, 3])
    # Reach 2. At the left end the line through 0, 0, 3 has mean 1 and slope 1.5: -0.5 there.
    assert smoothed([0.0, 0.0, 3.0] + [3.0] * 37)[0] == pytest.approx(-0.5)


def test_smoothing_bridges_a_value_that_is_not_finite():
    assert smoothed([2.0, math.nan, 4.0]) == pytest.approx([2, 3, 4])


def test_titles_are_escaped():
    assert "<b>" not in line_chart("<b>", [series([1.0, 2.0])])


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "0"), (0.7312, "0.731"), (-2.5, "−2.5"), (12345.6, "12,346"), (2e-6, "2.0e−6")],
)
def test_numbers_are_short(value, words):
    assert number(value) == words


@pytest.mark.parametrize(
    "values",
    [
        [0.29166667] * 1999 + [math.nextafter(0.29166667, 1.0)],
        [-5.0, math.nextafter(-5.0, 0.0)],
        [0.0, 5e-324],
        [1e-320] * 20,
        [1e300, -1e300],
        [7.0] * 3,
        [math.nan],
    ],
)
def test_whatever_a_run_measures_can_be_drawn(values):
    chart = line_chart("t", [series(values)])
    assert "nan" not in chart
    assert chart.count('class="grid"') >= 2
