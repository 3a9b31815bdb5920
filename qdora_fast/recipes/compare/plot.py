"""The comparison as one page: held-out loss while training, where each arm ends, and the differences with intervals.

It opens from a folder without a network and has no script: charts are SVG, drawn from the record, and take the
colours of the reader's light or dark mode. Two kinds of small charts share their axes: all methods at one LoRA+ ratio,
and one method with and without LoRA+. A band spans the lowest and highest seed; the line is the mean. Losses span
orders of magnitude, so their axis is logarithmic where that is so.

Nothing is computed but geometry (`charts.py`). Base page and colours are those of the data pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdora_fast.recipes.compare.arms import FULL, SPOKEN
from qdora_fast.recipes.compare.table import cost_cells, outcome_cells, target_words
from qdora_fast.recipes.compare.words import HEADINGS, limits, tried_words
from qdora_fast.system.charts import Axes, Scale, Series, Tick, interval, line_chart
from qdora_fast.system.pages import render

FURTHEST = 1e3
"""Ratio at which the chart of differences ends; what lies beyond is drawn at its end."""


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
    )


def colour(arm: Mapping[str, Any]) -> str:
    """The class that gives an arm its colour: by method, the same on every chart."""
    return str(arm["method"])


def _charts(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Charts of curves on common axes: methods by ratio, then ratios by method."""
    arms = [arm for arm in record["arms"].values() if arm["curve"]]
    axes = Axes.of((_series(arm) for arm in arms), logarithmic=True)
    if axes is None:
        return []
    ratios = sorted({arm["loraplus"] for arm in arms if arm["method"] != FULL})
    methods = list(dict.fromkeys(arm["method"] for arm in arms if arm["method"] != FULL))
    groups = [
        (
            "All methods, " + ("LoRA+ off" if ratio == 1 else f"LoRA+ {ratio:g}"),
            [_series(arm) for arm in arms if arm["loraplus"] == ratio or arm["method"] == FULL],
        )
        for ratio in ratios or [1.0]
    ]
    if len(ratios) > 1:
        groups += [
            (
                f"{SPOKEN[method]}, with and without LoRA+",
                [_series(arm, by_ratio=True) for arm in arms if arm["method"] == method],
            )
            for method in methods
        ]
    target = record["target"]["loss"] or None
    return [{"title": title, **line_chart(series, axes=axes, level=target)} for title, series in groups]


def _series(arm: Mapping[str, Any], *, by_ratio: bool = False) -> Series:
    """The curve of an arm: the mean over its seeds, before a band from the lowest to the highest.

    Args:
        by_ratio: it is told apart by its LoRA+ ratio, not by its method.
    """
    plain = arm["loraplus"] == 1
    return Series(
        name=f"LoRA+ {'off' if plain else format(arm['loraplus'], 'g')}" if by_ratio else SPOKEN[arm["method"]],
        kind=colour(arm) + (" dashed" if by_ratio and not plain else ""),
        points=[(point["step"], point["mean"]) for point in arm["curve"]],
        band=[(point["step"], point["low"], point["high"]) for point in arm["curve"]],
    )


def _ends(record: Mapping[str, Any], figure: str, each: str, title: str, unit: float) -> dict[str, Any] | None:
    """One row an arm: a dot a seed, the mean and its interval; None where nothing was measured."""
    arms = [arm for arm in record["arms"].values() if arm[each]]
    if not arms:
        return None
    seen = [unit * value for arm in arms for value in arm[each]]
    ends = [unit * arm[figure][end] for arm in arms for end in ("low", "high") if arm[figure][end]]
    least = min(seen) / 3 if figure == "loss" else 0.0  # an interval of losses may reach down to almost nothing
    scale = Scale.around([max(least, value) for value in (*seen, *ends)], logarithmic=figure == "loss")
    rows = [
        {"name": arm["spoken"], "colour": colour(arm), "dots": [scale.at(unit * value) for value in arm[each]]}
        | _interval(arm[figure], scale, unit)
        for arm in arms
    ]
    return {"title": title, "rows": rows, "ticks": scale.ticks()}


def _interval(figure: Mapping[str, Any], scale: Scale, unit: float = 1.0) -> dict[str, float]:
    """Where a mean and its interval lie; {} where there is no mean."""
    mean, *bounds = (None if figure[key] is None else unit * figure[key] for key in ("mean", "low", "high"))
    return interval(mean, bounds, scale) or {}


def _forest(record: Mapping[str, Any], about: str, heading: str) -> dict[str, Any] | None:
    """Ratios of losses as intervals about 1, with their sentences."""
    compared = [one for one in record["differences"] if one["about"] == about]
    if not compared:
        return None
    ratios = [ratio for one in compared for key in ("mean", "low", "high") if (ratio := one["loss_ratio"][key])]
    reach = min(FURTHEST, max([1.01, *ratios, *(1 / ratio for ratio in ratios)]))
    scale = Scale(1 / reach, reach, logarithmic=True)
    rows = []
    for one in compared:
        low, high = one["loss_ratio"]["low"], one["loss_ratio"]["high"]
        kind = "unclear" if low is None or high is None or low <= 1 <= high else ("lower" if high < 1 else "higher")
        row = {"name": f"{one['spoken'][0]} : {one['spoken'][1]}", "kind": kind, "words": one["words"]}
        rows.append(row | _interval(one["loss_ratio"], scale))
    ticks = [Tick(tick.at, f"× {tick.label}") for tick in scale.ticks()]
    return {"heading": heading, "rows": rows, "ticks": ticks, "equal": scale.at(1)}
