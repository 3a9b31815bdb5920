"""Geometry of the drawings on a run's page: curves over the steps, and intervals on a common scale.

Everything is in per cent of the drawing's width and height, y counted from the top, so that the page can stretch a
drawing to its own width while lines and letters keep theirs: labels are HTML beside the drawing, not text in it. A
long curve is thinned to what can be seen, each stretch by its lowest and its highest value, so that no spike is lost.
Nothing here knows what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qdora_fast.system.pages import is_number

POINTS = 400
"""Of a curve at most: more than one for each pixel of a phone."""
Y_TICKS, X_TICKS = 4, 7
"""How many are wanted; it becomes a few more or less."""
CLOSEST_TICKS = 12.0
"""In per cent of the width: labels closer to each other would run into one."""
FURTHEST_TICK = 0.9
"""What lies beyond is the place of the axis' own name."""
LOG_FROM = 30.0
"""Ratio of largest to smallest value from which on a logarithmic scale shows more."""
LARGEST = 1e100
"""What lies beyond, NaN included, is no measurement; it is left out."""
PLAIN_STEPS = (1.0, 2.0, 5.0, 10.0)

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A curve: its name in the legend, its class in the style sheet, its points by rising x."""

    name: str
    kind: str
    points: Sequence[Point]
    dots: bool = False
    """Mark every point: for few of them."""


def line_chart(series: Sequence[Series], *, from_zero: bool = False, logarithmic: bool = False) -> dict[str, Any]:
    """Paths, ticks and legend of some curves on common axes; {} without a point.

    Args:
        from_zero: the scale begins at 0, for quantities whose size matters more than their change.
        logarithmic: use a logarithmic scale where the values call for it and are all above 0.
    """
    finite = [
        Series(each.name, each.kind, [p for p in each.points if all(abs(value) < LARGEST for value in p)], each.dots)
        for each in series
    ]
    drawn = [each for each in finite if each.points]
    if not drawn:
        return {}
    xs = [x for each in drawn for x, _ in each.points]
    ys = [y for each in drawn for _, y in each.points]
    on_log = logarithmic and min(ys) > 0 and max(ys) / min(ys) >= LOG_FROM
    shown = [*ys, 0.0] if from_zero else ys
    ticks = _log_ticks(min(ys), max(ys)) if on_log else _ticks(min(shown), max(shown))
    scale = math.log10 if on_log else float
    bounds = (scale(min(ys)), scale(max(ys))) if on_log else (min(*ticks, *ys), max(*ticks, *ys))
    low, high = _apart(*bounds)
    left, right = _apart(min(xs), max(xs))

    def place(point: Point) -> str:
        x, y = (point[0] - left) / (right - left), (scale(point[1]) - low) / (high - low)
        return f"{100 * x:.2f} {100 - 100 * y:.2f}"

    return {
        "curves": [
            {"name": each.name, "kind": each.kind, "path": "M" + " L".join(map(place, thin(each.points)))}
            | {"dots": [place(point) for point in each.points] if each.dots or len(each.points) == 1 else []}
            for each in drawn
        ],
        "y_ticks": [{"at": round(100 - 100 * (scale(y) - low) / (high - low), 2), "label": label(y)} for y in ticks],
        "x_ticks": _x_ticks(left, right, whole=all(x == int(x) for x in xs))
        if max(xs) > min(xs)
        else [{"at": 0.0, "label": label(left)}],
        "logarithmic": on_log,
    }


def thin(points: Sequence[Point], most: int = POINTS) -> list[Point]:
    """At most `most` points (and the two ends) that look like all of them: of each stretch the lowest and highest."""
    if len(points) <= most:
        return list(points)
    kept = {0, len(points) - 1}
    stretches = max(1, most // 2)
    for number in range(stretches):
        inside = range(number * len(points) // stretches, (number + 1) * len(points) // stretches)
        kept |= {min(inside, key=lambda i: points[i][1]), max(inside, key=lambda i: points[i][1])}
    return [points[index] for index in sorted(kept)]


def smooth(points: Sequence[Point], window: int) -> list[Point]:
    """Each value replaced by the mean of the `window` values around it, fewer at the ends."""
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    half = max(0, window // 2)
    found = []
    for index, (x, _) in enumerate(points):
        start, end = max(0, index - half), min(len(points), index + half + 1)
        found.append((x, (sums[end] - sums[start]) / (end - start)))
    return found


def interval(value: object, bounds: object, *, low: float = 0.0, high: float = 1.0) -> dict[str, float] | None:
    """Where a value and its interval lie between `low` and `high`, in per cent, cut at the ends; None without value."""
    if not is_number(value):
        return None
    ends = (
        bounds if isinstance(bounds, list | tuple) and len(bounds) == 2 and all(map(is_number, bounds)) else [value] * 2
    )
    at, left, right = (100 * min(1.0, max(0.0, (each - low) / (high - low))) for each in (value, *ends))
    return {"at": round(at, 2), "left": round(left, 2), "width": round(max(0.0, right - left), 2)}


def label(value: float) -> str:
    """A number at an axis: 12,000, 0.25, 2e-05."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _ticks(low: float, high: float, wanted: int = Y_TICKS) -> list[float]:
    """Plain numbers from at or below `low` to at or above `high`."""
    low, high = _apart(low, high)
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(each for each in PLAIN_STEPS if each * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two values, every second or third of them where there are many."""
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    return [float(f"1e{power}") for power in powers if power % max(1, math.ceil(len(powers) / 6)) == 0]


def _x_ticks(left: float, right: float, *, whole: bool) -> list[dict[str, Any]]:
    last = left + FURTHEST_TICK * (right - left)
    inside = [
        value for value in _ticks(left, right, X_TICKS) if left <= value <= last and (value == int(value) or not whole)
    ]
    found: list[dict[str, Any]] = []
    for value in inside:
        at = 100 * (value - left) / (right - left)
        if not found or at - found[-1]["at"] >= CLOSEST_TICKS:
            found.append({"at": round(at, 2), "label": label(value)})
    return found


def _apart(low: float, high: float) -> tuple[float, float]:
    """Bounds of a scale that are not the same."""
    if high > low and (high - low) > 1e-9 * max(abs(low), abs(high)):
        return low, high
    room = abs(low) * 0.5 or 0.5
    return low - room, high + room
