from __future__ import annotations

import math
import re

import pytest
from breadth import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from qdora_fast.system.charts import POINTS, Axes, Bins, Scale, Series, bar, interval, label, line_chart, smooth, thin

anything = st.floats() | st.integers(-(10**6), 10**6).map(float)
curves = st.lists(st.tuples(st.integers(0, 10**6), anything), max_size=50, unique_by=lambda p: p[0]).map(sorted)


def numbers(path: str) -> list[float]:
    return [float(each) for each in re.findall(r"-?[\d.]+", path)]


@settings(deadline=None)
@given(st.lists(curves, min_size=1, max_size=3), st.booleans(), st.booleans())
def test_nothing_is_drawn_outside_the_chart(
    given_curves: list[list[tuple[int, float]]], from_zero: bool, logarithmic: bool
) -> None:
    series = [Series("n", "k", points, dots=True) for points in given_curves]
    chart = line_chart(series, from_zero=from_zero, logarithmic=logarithmic)
    drawn = [p for points in given_curves for p in points if abs(p[1]) < 1e100]
    assert bool(chart) == bool(drawn)
    for curve in chart.get("curves", []):
        places = numbers(curve["points"]) + [each for dot in curve["dots"] for each in numbers(dot)]
        assert all(-0.01 <= place <= 100.01 for place in places)
    for axis in ("x_ticks", "y_ticks"):
        assert all(-0.01 <= tick.at <= 100.01 for tick in chart.get(axis, []))


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=40))
def test_labels_stand_where_their_values_are(ys: list[float]) -> None:
    chart = line_chart([Series("n", "k", list(enumerate(ys)))])
    places = numbers(chart["curves"][0]["points"])[1::2]
    ticks = [(float(tick.label.replace(",", "")), tick.at) for tick in chart["y_ticks"]]
    (low, low_at), (high, high_at) = ticks[0], ticks[-1]
    room = 0.006 * max(abs(low), abs(high)) / (high - low) * 100 + 0.1  # labels have three digits
    for y, place in zip(ys, places, strict=True):
        assert place == pytest.approx(low_at + (high_at - low_at) * (y - low) / (high - low), abs=room)


def test_the_scale_is_logarithmic_where_the_values_call_for_it() -> None:
    wide = [Series("n", "k", [(1, 10.0), (2, 0.1), (3, 0.01)])]
    assert [tick.label for tick in line_chart(wide, logarithmic=True)["y_ticks"]] == ["0.01", "0.1", "1", "10"]
    assert not line_chart([Series("n", "k", [(1, 10.0), (2, 5.0)])], logarithmic=True)["logarithmic"]
    assert not line_chart([Series("n", "k", [(1, 10.0), (2, 0.0)])], logarithmic=True)["logarithmic"]


def test_sizes_start_at_zero_and_steps_are_whole() -> None:
    chart = line_chart([Series("n", "k", [(1, 11.0), (3, 12.0)])], from_zero=True)
    assert chart["y_ticks"][0] == (100.0, "0")
    assert [tick.label for tick in chart["x_ticks"]] == ["1", "2"]


def test_a_single_point_is_a_dot_and_no_point_is_no_chart() -> None:
    assert len(line_chart([Series("n", "k", [(5, 1.0)])])["curves"][0]["dots"]) == 1
    assert line_chart([Series("n", "k", [])]) == {}
    assert line_chart([Series("n", "k", [(1, math.nan), (2, math.inf)])]) == {}


@settings(deadline=None)
@given(st.lists(st.floats(-1e9, 1e9), max_size=3000), st.integers(4, 200))
def test_a_thinned_curve_keeps_its_ends_and_its_extremes(ys: list[float], most: int) -> None:
    points = list(enumerate(ys))
    kept = thin(points, most)
    assert len(kept) <= most + 2
    assert [p for p in points if p in set(kept)] == kept
    if points:
        assert (kept[0], kept[-1]) == (points[0], points[-1])
        assert {min(ys), max(ys)} <= {y for _, y in kept}


def test_a_long_run_makes_a_small_page() -> None:
    chart = line_chart([Series("n", "k", [(step, math.sin(step)) for step in range(100_000)])])
    assert chart["curves"][0]["points"].count(" ") <= POINTS + 1


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.integers(0, 20))
def test_a_smoothed_curve_is_the_mean_of_its_neighbours(ys: list[float], window: int) -> None:
    points = list(enumerate(map(float, ys)))
    smoothed = smooth(points, window)
    assert [x for x, _ in smoothed] == [x for x, _ in points]
    for index, (_, y) in enumerate(smoothed):
        near = ys[max(0, index - window // 2) : index + window // 2 + 1]
        assert y == pytest.approx(sum(near) / len(near), abs=1e-6)


def test_an_interval_is_cut_at_the_ends_of_the_scale() -> None:
    scale = Scale(0, 1)
    assert interval(0.5, [0.25, 0.75], scale) == {"at": 50.0, "left": 25.0, "width": 50.0}
    assert interval(1.0, [0.9, 1.2], scale) == {"at": 100.0, "left": 90.0, "width": 10.0}
    assert interval(0.5, None, scale) == {"at": 50.0, "left": 50.0, "width": 0.0}
    assert interval(None, [0.1, 0.2], scale) is None and interval(math.nan, None, scale) is None
    assert interval(0.5, [math.nan, 1], scale) == {"at": 50.0, "left": 50.0, "width": 0.0}


@settings(deadline=None, max_examples=examples(500))
@given(st.floats(1e-6, 1e6), st.floats(1.0, 1e6))
def test_an_axis_has_labels_in_order_between_its_ends(low: float, times: float) -> None:
    scale = Scale.around([low, low * times], logarithmic=True)
    ticks = scale.ticks()
    assert len(ticks) > 1 and len({tick.label for tick in ticks}) == len(ticks)
    assert [tick.at for tick in ticks] == sorted(tick.at for tick in ticks)
    assert scale.logarithmic == (low * times / low >= 20)
    assert 0 <= scale.at(low) <= scale.at(low * times) <= 100


def test_a_value_beyond_an_axis_is_drawn_at_its_end() -> None:
    assert [Scale(1, 3).at(value) for value in (0, 1, 2, 3, 9)] == [0, 0, 50, 100, 100]


def test_a_linear_axis_ends_at_round_numbers_and_a_share_stays_one() -> None:
    scale = Scale.around([91.5, 98.5])
    assert (scale.low, scale.high) == (90, 100)
    assert [tick.label for tick in scale.ticks()] == ["90", "92", "94", "96", "98", "100"]
    assert Scale.around([100.0, 98.5]).high == 100


def test_charts_that_are_compared_share_their_axes_and_a_band_lies_around_its_curve() -> None:
    one = Series("one", "k", [(0, 2.0), (10, 1.0)], band=[(0, 1.0, 3.0), (10, 0.5, 1.5)])
    other = Series("other", "k", [(0, 4.0), (20, 2.0)])
    axes = Axes.of([one, other])
    first, second = (line_chart([series], axes=axes, level=2.0) for series in (one, other))
    assert (first["x_ticks"], first["y_ticks"]) == (second["x_ticks"], second["y_ticks"])
    assert first["level"] == second["level"] == numbers(second["curves"][0]["points"])[3]
    outline, curve = numbers(first["curves"][0]["band"]), numbers(first["curves"][0]["points"])
    assert outline[:1] + outline[2:3] == curve[::2] and len(outline) == 8
    assert outline[1] < curve[1] < outline[7] and outline[3] < curve[3] < outline[5]
    assert second["curves"][0]["band"] == ""


def test_bins_are_equally_wide_and_a_far_limit_gets_a_quarter_of_the_axis() -> None:
    bins, shortened = Bins.of([0, 512, 1024, 2048], 0)
    assert [bins.at(value) for value in (0, 512, 1024, 1536, 2048)] == [0, 33.333, 66.667, 83.333, 100]
    assert not shortened
    assert bins.ticks(2048, wanted=6, closest=8.0) == [
        (0, "0"),
        (33.333, "512"),
        (66.667, "1,024"),
        (83.333, "1,536"),
        (100, "2,048"),
    ]
    far, shortened = Bins.of([0, 100, 200], 8192)
    assert shortened and far.at(200) == pytest.approx(200 / 3, abs=0.01) and far.at(8192) < 100


def test_a_bar_is_a_share_of_the_drawing_and_never_too_small_to_see() -> None:
    assert (bar(3, 4), bar(0.001, 4, smallest=1.2)) == (75.0, 1.2)


@pytest.mark.parametrize(("value", "said"), [(0, "0"), (2e-5, "2e-05"), (0.25, "0.25"), (12_000, "12,000")])
def test_labels_are_short(value: float, said: str) -> None:
    assert label(value) == said
