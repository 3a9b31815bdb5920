"""The comparison as one page: held-out loss while training, where each arm ends, and the differences with intervals.

It opens from a folder without a network and has no script: charts are SVG, drawn here from the record, and take the
colours of the reader's light or dark mode. Two kinds of small charts share their axes: all methods at one LoRA+ ratio,
and one method with and without LoRA+. A band spans the lowest and highest seed; the line is the mean. Losses span
orders of magnitude, so their axis is logarithmic where that is so.

Nothing is computed but geometry. Base page and colours are those of the data pages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdora_fast.recipes.compare.arms import FULL, SPOKEN
from qdora_fast.recipes.compare.table import cost_cells, outcome_cells, target_words
from qdora_fast.recipes.compare.words import HEADINGS, limits, tried_words
from qdora_fast.system.pages import render

WIDTH, HEIGHT = 420.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 8.0, 8.0, 24.0
"""Of a chart of curves, in its own units."""
LOGARITHMIC = 20.0
"""Axes become logarithmic where the largest value is this many times the smallest."""
FURTHEST = 1e3
"""Ratio at which the chart of differences ends; what lies beyond is drawn at its end."""


@dataclass(frozen=True)
class Scale:
    """From values to places on an axis."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """The place of `value`, kept on the axis."""
        low, high, value = (self._bent(number) for number in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + min(1.0, max(0.0, share)) * (self.end - self.start), 2)

    def ticks(self, most: int = 6) -> list[tuple[str, float]]:
        """Label and place of round values between the ends."""
        wide = self.logarithmic and self.high > 5 * self.low
        values = _decades(self.low, self.high) if wide else _round_steps(self.low, self.high, most)
        inside = [value for value in values if self.low <= value <= self.high]
        return list(zip(_labels(inside), map(self, inside), strict=True))

    def _bent(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self.logarithmic else value


def comparison_page(record: Mapping[str, Any]) -> str:
    """The page of a comparison's record, as HTML."""
    arms = record["arms"]
    return render(
        "comparison.html.j2",
        "recipes/compare/page_templates",
        record=record,
        charts=_charts(record),
        ends=[
            _ends(record, "loss", "losses", "Held-out loss at the end", 1.0),
            _ends(record, "score", "scores", f"Held-out {record['score_name']} at the end, in per cent", 100.0),
        ],
        forest=[_forest(record, about, heading) for about, heading in HEADINGS.items()],
        rows=[(arm["spoken"], colour(arm), *outcome_cells(arm), *cost_cells(arm)) for arm in arms.values()],
        target=target_words(record),
        limits=limits(record),
        tried=[tried_words(arm) for arm in arms.values() if len(arm["tried"]) > 1],
        size=(WIDTH, HEIGHT),
    )


def colour(arm: Mapping[str, Any]) -> str:
    """The class that gives an arm its colour: by method, the same on every chart."""
    return str(arm["method"])


def _charts(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Charts of curves on common axes: methods by ratio, then ratios by method."""
    arms = [arm for arm in record["arms"].values() if arm["curve"]]
    if not arms:
        return []
    points = [point for arm in arms for point in arm["curve"]]
    lowest, highest = min(point["low"] for point in points), max(point["high"] for point in points)
    x = Scale(0, max(point["step"] for point in points), LEFT, WIDTH - RIGHT)
    y = loss_scale(lowest, highest, HEIGHT - BOTTOM, TOP)
    ratios = sorted({arm["loraplus"] for arm in arms if arm["method"] != FULL})
    methods = list(dict.fromkeys(arm["method"] for arm in arms if arm["method"] != FULL))
    groups = [
        (
            "All methods, " + ("LoRA+ off" if ratio == 1 else f"LoRA+ {ratio:g}"),
            [arm for arm in arms if arm["loraplus"] == ratio or arm["method"] == FULL],
            False,
        )
        for ratio in ratios or [1.0]
    ]
    if len(ratios) > 1:
        groups += [
            (f"{SPOKEN[method]}, with and without LoRA+", [arm for arm in arms if arm["method"] == method], True)
            for method in methods
        ]
    target = record["target"]["loss"]
    return [
        {
            "title": title,
            "lines": [_line(arm, x, y, dashed=by_ratio and arm["loraplus"] != 1, by_ratio=by_ratio) for arm in members],
            "x": x.ticks(),
            "y": y.ticks(),
            "left": LEFT,
            "right": WIDTH - RIGHT,
            "bottom": HEIGHT - BOTTOM,
            "target": y(target) if target else None,
        }
        for title, members, by_ratio in groups
    ]


def loss_scale(lowest: float, highest: float, start: float, end: float) -> Scale:
    """An axis for losses: logarithmic where they span much, with a little room at both ends."""
    if lowest > 0 and highest / lowest >= LOGARITHMIC:
        return Scale(lowest / 1.2, highest * 1.2, start, end, logarithmic=True)
    room = max(0.05 * (highest - lowest), 1e-3 * highest) or 0.05
    return Scale(max(0.0, lowest - room), highest + room, start, end)


def _line(arm: Mapping[str, Any], x: Scale, y: Scale, *, dashed: bool, by_ratio: bool) -> dict[str, Any]:
    places = [(x(point["step"]), y(point["low"]), y(point["mean"]), y(point["high"])) for point in arm["curve"]]
    upper, lower = [(at, high) for at, _, _, high in places], [(at, low) for at, low, _, _ in reversed(places)]
    plain = "off" if arm["loraplus"] == 1 else f"{arm['loraplus']:g}"
    return {
        "colour": colour(arm),
        "dashed": dashed,
        "label": f"LoRA+ {plain}" if by_ratio else SPOKEN[arm["method"]],
        "mean": _points((at, mean) for at, _, mean, _ in places),
        "band": _points([*upper, *lower]),
    }


def _ends(record: Mapping[str, Any], figure: str, each: str, title: str, unit: float) -> dict[str, Any] | None:
    """One row an arm: a dot a seed, the mean and its interval; None where nothing was measured."""
    arms = [arm for arm in record["arms"].values() if arm[each]]
    if not arms:
        return None
    known = [unit * value for arm in arms for value in arm[each]]
    for arm in arms:
        known += [unit * arm[figure][end] for end in ("low", "high") if arm[figure][end]]
    seen = min(unit * value for arm in arms for value in arm[each])
    scale = loss_scale(max(min(known), seen / 3), max(known), 0, 100)
    if figure == "score":
        room = 0.04 * (max(known) - min(known)) or 1.0
        scale = Scale(max(0.0, min(known) - room), min(unit, max(known) + room), 0, 100)
    rows = []
    for arm in arms:
        found = {key: arm[figure][key] for key in ("mean", "low", "high")}
        places = {key: None if value is None else scale(unit * value) for key, value in found.items()}
        dots = [scale(unit * value) for value in arm[each]]
        rows.append({"name": arm["spoken"], "colour": colour(arm), "dots": dots, **places})
    return {"title": title, "rows": rows, "ticks": scale.ticks()}


def _forest(record: Mapping[str, Any], about: str, heading: str) -> dict[str, Any] | None:
    """Ratios of losses as intervals about 1, with their sentences."""
    found = [one for one in record["differences"] if one["about"] == about]
    if not found:
        return None
    keys = ("mean", "low", "high")
    ratios = [ratio for one in found for key in keys if (ratio := one["loss_ratio"][key])]
    reach = min(FURTHEST, max([1.01, *ratios, *(1 / ratio for ratio in ratios)]))
    scale = Scale(1 / reach, reach, 0, 100, logarithmic=True)
    rows = []
    for one in found:
        mean, low, high = (one["loss_ratio"][key] for key in keys)
        kind = "unclear" if low is None or high is None or low <= 1 <= high else ("lower" if high < 1 else "higher")
        drawn = {key: value and scale(value) for key, value in zip(keys, (mean, low, high), strict=True)}
        rows.append({"name": f"{one['spoken'][0]} : {one['spoken'][1]}", "kind": kind, "words": one["words"], **drawn})
    ticks = [(f"× {label}", at) for label, at in scale.ticks(4)]
    return {"heading": heading, "rows": rows, "ticks": ticks, "equal": scale(1)}


def _points(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in places)


def _decades(low: float, high: float) -> Sequence[float]:
    """1, 3, 10, 30 and so on; over less than a decade also 2 and 5."""
    digits = (1, 3) if high / low > 10 else (1, 2, 3, 5)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [digit * 10.0**exponent for exponent in exponents for digit in digits]


def _round_steps(low: float, high: float, most: int) -> Sequence[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten, at most about `most` of them."""
    raw = (high - low) / max(1, most - 1) or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(digit * power for digit in (1, 2, 2.5, 5, 10) if digit * power >= raw * 0.999)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _labels(values: Sequence[float]) -> list[str]:
    """With four digits that count, or as many as tell them apart."""
    labels = [f"{value:.4g}" for value in values]
    digits = 5
    while len(set(labels)) < len(labels) and digits < 17:
        labels = [f"{value:.{digits}g}" for value in values]
        digits += 1
    return labels
