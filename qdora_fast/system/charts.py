"""Geometry of every drawing on the pages: axes and their ticks, curves with bands, bars, and values with intervals.

Everything is in per cent of the drawing's width and height, y counted from the top, so that a page can stretch a
drawing to its own width while lines and letters keep theirs: labels are HTML beside the drawing, not text in it
(`charts.html.j2` in `page_templates/`, where they are escaped). A long curve is thinned to what can be seen, each
stretch by its lowest and its highest value, so that no spike is lost. Nothing here knows what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from qdora_fast.system.pages import is_number

POINTS = 400
"""Of a curve at most: more than one for each pixel of a phone."""
Y_TICKS, X_TICKS = 4, 7
"""How many are wanted; it becomes a few more or less."""
CLOSEST_TICKS = 12.0
"""In per cent of the width: labels closer to each other would run into one."""
FURTHEST_TICK = 90.0
"""What lies beyond, in per cent of the width, is where the axis' own name stands."""
LOG_FROM = 20.0
"""Ratio of largest to smallest value from which on a logarithmic scale shows more."""
LOG_ROOM = 1.2
"""Factor that a logarithmic scale leaves free at both ends."""
LARGEST = 1e100
"""What lies beyond, NaN included, is no measurement; it is left out."""
MOST_DECADES = 6
"""Labels of a logarithmic axis; of more powers of ten every second or third is labelled."""

Point = tuple[float, float]


class Tick(NamedTuple):
    """A label on an axis."""

    at: float
    """Per cent of the axis, from its low end."""
    label: str


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`, which are not the same."""

    low: float
    high: float
    logarithmic: bool = False
    step: float | None = None
    """Between labels of a linear axis; None: as many as are asked for decide."""

    @classmethod
    def around(cls, values: Sequence[float], *, from_zero: bool = False, logarithmic: bool = False) -> Scale:
        """An axis that shows all values, which must be finite.

        Args:
            from_zero: it begins at 0, for quantities whose size matters more than their change.
            logarithmic: where the values span much and are all above 0; else the axis ends at round numbers.
        """
        low, high = min(values), max(values)
        if logarithmic and low > 0 and high / low >= LOG_FROM:
            return cls(low / LOG_ROOM, high * LOG_ROOM, logarithmic=True)
        low, high = _apart(min(low, 0.0), high) if from_zero else _apart(low, high)
        step = _step(low, high, Y_TICKS)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        return cls(min(low, _multiple(first, step)), max(high, _multiple(last, step)), step=step)

    @classmethod
    def between(cls, values: Sequence[float]) -> Scale:
        """An axis from the smallest value to the largest."""
        return cls(*_apart(min(values), max(values)))

    def at(self, value: float) -> float:
        """Per cent of the axis from its low end, kept on the axis."""
        low, high, value = (self._bent(number) for number in (self.low, self.high, value))
        return round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 2)

    def ticks(self, wanted: int = Y_TICKS) -> list[Tick]:
        """Round values on the axis, about so many, in order."""
        wide = self.logarithmic and self.high > 5 * self.low
        values = (
            _decades(self.low, self.high)
            if wide
            else _multiples(self.low, self.high, self.step or _step(self.low, self.high, wanted))
        )
        return _labelled(values, self.at)

    def _bent(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.logarithmic else value


@dataclass(frozen=True)
class Bins:
    """An axis on which every bin of a histogram is equally wide, whatever its edges."""

    edges: Sequence[float]
    """Rising."""
    positions: Sequence[float]
    """Of each edge, in widths of a bin."""

    @classmethod
    def of(cls, edges: Sequence[float], furthest: float) -> tuple[Bins, bool]:
        """An axis that also shows `furthest`, and whether it was shortened: empty room is at most a quarter of it."""
        positions = [float(number) for number in range(len(edges))]
        if furthest <= edges[-1]:
            return cls(edges, positions), False
        room = 1.03 * (furthest - edges[-1])
        bins, most = room / (edges[-1] - edges[-2]), max(1.0, (len(edges) - 1) / 3)
        return cls([*edges, edges[-1] + room], [*positions, positions[-1] + min(bins, most)]), bins > most

    def at(self, value: float) -> float:
        """Per cent of the axis from its low end, kept on the axis."""
        edges, positions = self.edges, self.positions
        index = next((i for i in range(len(edges) - 2) if value <= edges[i + 1]), len(edges) - 2)
        part = min(1.0, max(0.0, (value - edges[index]) / (edges[index + 1] - edges[index])))
        return round(100 * (positions[index] + part * (positions[index + 1] - positions[index])) / positions[-1], 3)

    def ticks(self, last: float, *, wanted: int, closest: float) -> list[Tick]:
        """Labels up to `last`: multiples of a power of two, as sequence lengths are."""
        step = 2 ** math.ceil(math.log2(max(1.0, (last - self.edges[0]) / wanted)))
        values = range(math.ceil(self.edges[0] / step) * step, math.floor(last) + 1, step)
        return _spaced(_labelled(values, self.at), closest)


@dataclass(frozen=True)
class Series:
    """A curve: its name in the legend, its class in the style sheet, its points by rising x."""

    name: str
    kind: str
    points: Sequence[Point]
    dots: bool = False
    """Mark every point: for few of them."""
    band: Sequence[tuple[float, float, float]] = ()
    """x, low and high of an area behind the curve."""


@dataclass(frozen=True)
class Axes:
    """The axes of a chart of curves, or of several charts that are compared."""

    x: Scale
    y: Scale
    x_ticks: Sequence[Tick]

    @classmethod
    def of(cls, series: Iterable[Series], *, from_zero: bool = False, logarithmic: bool = False) -> Axes | None:
        """Axes that show all points and bands; None without a point. Arguments as for `Scale.around`."""
        drawn = [_finite(each) for each in series]
        xs = [x for each in drawn for x, _ in each.points]
        ys = [y for each in drawn for _, y in each.points]
        ys += [y for each in drawn for _, *ends in each.band for y in ends]
        if not xs:
            return None
        x = Scale.between(xs)
        if max(xs) == min(xs):
            ticks = [Tick(0.0, label(x.low))]
        else:
            whole = all(value == int(value) for value in xs)
            values = [v for v in _multiples(x.low, x.high, _step(x.low, x.high, X_TICKS)) if v == int(v) or not whole]
            ticks = _spaced([tick for tick in _labelled(values, x.at) if tick.at <= FURTHEST_TICK], CLOSEST_TICKS)
        return cls(x, Scale.around(ys, from_zero=from_zero, logarithmic=logarithmic), ticks)

    def point(self, x: float, y: float) -> str:
        """The point as SVG writes it: `12.5,80`."""
        return f"{self.x.at(x):g},{100 - self.y.at(y):.4g}"


def line_chart(
    series: Sequence[Series],
    *,
    from_zero: bool = False,
    logarithmic: bool = False,
    axes: Axes | None = None,
    level: float | None = None,
) -> dict[str, Any]:
    """Curves, bands and ticks, for the macro `line_chart`; {} without a point.

    Args:
        from_zero, logarithmic: see `Scale.around`.
        axes: shared with other charts; None: those that fit.
        level: a value to be marked by a horizontal line.
    """
    drawn = [each for each in map(_finite, series) if each.points]
    axes = axes or Axes.of(drawn, from_zero=from_zero, logarithmic=logarithmic)
    if axes is None or not drawn:
        return {}
    return {
        "curves": [
            {
                "name": each.name,
                "kind": each.kind,
                "points": " ".join(axes.point(*point) for point in thin(each.points)),
                "dots": [axes.point(*point) for point in each.points] if each.dots or len(each.points) == 1 else [],
                "band": _outline(each, axes),
            }
            for each in drawn
        ],
        "y_ticks": [Tick(round(100 - tick.at, 2), tick.label) for tick in axes.y.ticks()],
        "x_ticks": axes.x_ticks,
        "level": None if level is None else round(100 - axes.y.at(level), 2),
        "logarithmic": axes.y.logarithmic,
    }


def interval(value: object, bounds: object, scale: Scale) -> dict[str, float] | None:
    """Where a value and its interval lie on a scale: at, left and width; None without value.

    The width is 0 where there is no interval.
    """
    if not is_number(value):
        return None
    known = isinstance(bounds, list | tuple) and len(bounds) == 2 and all(map(is_number, bounds))
    at, left, right = map(scale.at, (value, *(bounds if known else (value, value))))  # type: ignore[misc]
    return {"at": at, "left": left, "width": round(max(0.0, right - left), 2)}


def bar(size: float, total: float, *, smallest: float = 0.0) -> float:
    """Length of a bar in per cent of the drawing, where `total` fills it; at least `smallest`."""
    return max(smallest, 100 * size / total)


def thin(points: Sequence[Point], most: int = POINTS) -> list[Point]:
    """At most `most` points (and the two ends) that look like all of them: of each stretch the lowest and highest."""
    if len(points) <= most:
        return list(points)
    chosen = {0, len(points) - 1}
    stretches = max(1, most // 2)
    for number in range(stretches):
        inside = range(number * len(points) // stretches, (number + 1) * len(points) // stretches)
        chosen |= {min(inside, key=lambda i: points[i][1]), max(inside, key=lambda i: points[i][1])}
    return [points[index] for index in sorted(chosen)]


def smooth(points: Sequence[Point], window: int) -> list[Point]:
    """Each value replaced by the mean of the `window` values around it, fewer at the ends."""
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    half = max(0, window // 2)
    means = []
    for index, (x, _) in enumerate(points):
        start, end = max(0, index - half), min(len(points), index + half + 1)
        means.append((x, (sums[end] - sums[start]) / (end - start)))
    return means


def label(value: float, digits: int = 3) -> str:
    """A number at an axis: 12,000, 0.25, 2e-05."""
    return f"{value:,.0f}" if abs(value) >= 1000 and (digits == 3 or value == round(value)) else f"{value:.{digits}g}"


def _labelled(values: Iterable[float], at: Callable[[float], float]) -> list[Tick]:
    """Ticks with three digits that count, or as many as tell them apart."""
    values = list(values)
    labels = next(
        (found for digits in range(3, 18) if len(set(found := [label(v, digits) for v in values])) == len(values)),
        [repr(value) for value in values],
    )
    return [Tick(at(value), text) for value, text in zip(values, labels, strict=True)]


def _spaced(ticks: Iterable[Tick], closest: float) -> list[Tick]:
    """Those ticks that have room for their labels."""
    chosen: list[Tick] = []
    for tick in ticks:
        if not chosen or tick.at - chosen[-1].at >= closest:
            chosen.append(tick)
    return chosen


def _finite(series: Series) -> Series:
    """The curve without what is no measurement."""
    points, band = (
        [point for point in each if all(abs(value) < LARGEST for value in point)]
        for each in (series.points, series.band)
    )
    return Series(series.name, series.kind, points, series.dots, band)  # type: ignore[arg-type]


def _outline(series: Series, axes: Axes) -> str:
    upper = [axes.point(x, high) for x, _, high in series.band]
    lower = [axes.point(x, low) for x, low, _ in reversed(series.band)]
    return " ".join([*upper, *lower])


def _step(low: float, high: float, wanted: int) -> float:
    """1, 2 or 5 times a power of ten, so that about `wanted` steps lead from `low` to `high`."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    return power * next(digit for digit in (1.0, 2.0, 5.0, 10.0) if digit * power >= raw * 0.999)


def _multiple(number: int, step: float) -> float:
    return float(f"{number * step:.12g}")


def _multiples(low: float, high: float, step: float) -> list[float]:
    """Multiples of `step` from `low` to `high`, both included."""
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [_multiple(number, step) for number in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten from `low` to `high`; also 3 times them where they are few, and 2 and 5 below one decade."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = math.log10(high / low)
    digits = (1,) if decades > MOST_DECADES / 2 else (1, 3) if decades > 1 else (1, 2, 3, 5)
    stride = max(1, math.ceil(decades / MOST_DECADES))
    values = [float(f"{digit}e{power}") for power in powers if power % stride == 0 for digit in digits]
    return [value for value in values if low <= value <= high]


def _apart(low: float, high: float) -> tuple[float, float]:
    """Bounds of a scale that are not the same."""
    if high > low and (high - low) > 1e-9 * max(abs(low), abs(high)):
        return low, high
    room = abs(low) * 0.5 or 0.5
    return low - room, high + room
