"""What the figures say, in sentences: what holds, and what these runs cannot show.

A difference is called one only where its 95 % interval leaves out "no change"; everything else is no evidence,
whichever way the mean points. Nothing is decided here beyond that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

HEADINGS = {
    "method": "One method against another",
    "loraplus": "LoRA+ against the same method without it",
    "full": "Adapters (LoRA+ off) against full fine-tuning",
}
MANY = 3.0
"""Factor from which on a change is said as a factor and not in per cent."""


def sentence(difference: Mapping[str, Any], score_name: str) -> str:
    """One difference in words: loss, score, and for LoRA+ the steps to the same loss."""
    a, b = difference["spoken"]
    parts = [_loss(difference), _score(difference["score"], score_name)]
    if "speed" in difference:
        parts.append(_speed(difference["speed"]))
    return f"{a} against {b}: " + "; ".join(filter(None, parts))


def interval_words(found: Mapping[str, Any], form: str = ".4f", scale: float = 1.0) -> str:
    """`0.0131 (0.0120-0.0142)`; a dash without a run, no brackets with one."""
    if found["mean"] is None:
        return "–"
    mean = format(scale * found["mean"], form)
    if found["low"] is None:
        return mean
    return f"{mean} ({format(scale * found['low'], form)}-{format(scale * found['high'], form)})"


def steps_words(to_target: Mapping[str, Any]) -> str:
    """`425 (5 of 5)`, or that the target was not reached."""
    of = len(to_target["each"])
    if not to_target["reached"]:
        return "not reached"
    return f"{to_target['median']:g} ({to_target['reached']} of {of})"


def tried_words(arm: Mapping[str, Any]) -> str:
    """`LoRA: 0.0005: 0.0301, 0.002: 0.0129 (taken)`."""
    parts = [
        f"{rate}: {'diverged' if loss is None else format(loss, '.4f')}"
        + (" (taken)" if float(rate) == arm["learning_rate"] else "")
        for rate, loss in arm["tried"].items()
    ]
    return f"{arm['spoken']}: {', '.join(parts)}"


def limits(record: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing the table."""
    seeds, compared = len(record["seeds"]), len(record["differences"])
    text = [
        f"intervals are Student's 95 % over {seeds} seeds (adapter start and row order) on the same "
        f"{record['dataset']['asked']} held-out rows: they say nothing of other data or other bases",
        "losses are averaged by their logarithms, and their differences are ratios: they vary by factors",
    ]
    if seeds == 1:
        text = ["one seed: no interval, so no difference here is evidence of anything"]
    elif compared > 1:
        chance = 0.05 * 2 * compared
        text.append(
            f"{2 * compared} intervals of differences, not corrected for their number: "
            f"about {chance:.1f} would show a change by chance alone"
        )
    text += _rates(record["arms"].values())
    text.append(f"step times were taken {record['clock']}; whatever else ran there is in them")
    text.append(f"memory: {record['memory_counts']}")
    diverged = [arm["spoken"] for arm in record["arms"].values() if arm["diverged"]]
    if diverged:
        text.append(f"runs that diverged are left out of the means of: {', '.join(diverged)}")
    return text


def _rates(arms: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    arms = list(arms)
    if all(len(arm["tried"]) < 2 for arm in arms):
        yield "all adapters share one learning rate, which suits some better; --learning-rates tries several"
        return
    yield (
        "the learning rate of each arm is the one with the lowest mean held-out loss, chosen on the rows that are "
        "reported: the figures are a little too good for every arm"
    )
    rates = {arm["spoken"]: (arm["learning_rate"], [float(rate) for rate in arm["tried"]]) for arm in arms}
    edges = [name for name, (best, tried) in rates.items() if len(tried) > 1 and best in (min(tried), max(tried))]
    if edges:
        yield f"best at the lowest or highest rate that was tried, so a better one may lie beyond: {', '.join(edges)}"


def _loss(difference: Mapping[str, Any]) -> str:
    found = difference["loss_ratio"]
    if found["mean"] is None:
        return "no pair of runs with a held-out loss"
    ends = [found["low"], found["high"]]
    sure = None not in ends and not found["low"] <= 1 <= found["high"]
    many = not all(1 / MANY < ratio < MANY for ratio in (found["mean"], *ends) if ratio is not None)
    mean, *ends = ("" if ratio is None else _change(ratio, many=many) for ratio in (found["mean"], *ends))
    range_ = f"95 % CI {ends[0]} to {ends[1]}" if ends[0] else "one seed, no interval"
    mean += " times" if many else ""
    if sure:
        return f"held-out loss {'lower' if found['mean'] < 1 else 'HIGHER'}: {mean} ({range_})"
    return f"no evidence of a difference in held-out loss ({mean}; {range_})"


def _change(ratio: float, *, many: bool) -> str:
    """`-12.0 %`, or where factors are large `4.9`."""
    if not many:
        return f"{round(100 * (ratio - 1), 1) + 0.0:+.1f} %"
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:#.2g}".rstrip(".")


def _score(found: Mapping[str, Any], name: str) -> str:
    if found["mean"] is None:
        return ""
    mean, low, high = (None if found[key] is None else _points(found[key]) for key in ("mean", "low", "high"))
    if low is None:
        return f"no evidence of a difference in {name} ({mean} points; one seed, no interval)"
    range_ = f"95 % CI {low} to {high}"
    if found["low"] <= 0 <= found["high"]:
        return f"no evidence of a difference in {name} ({mean} points; {range_})"
    return f"{name} {'higher' if found['mean'] > 0 else 'LOWER'}: {mean} points ({range_})"


def _points(share: float) -> str:
    """`+1.7`, and never `-0.0`."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def _speed(speed: Mapping[str, Any]) -> str:
    if not speed["reached"]:
        return f"it does not reach the loss that ratio 1 ends with in any of {speed['n']} seeds"
    often = f"in {speed['reached']} of {speed['n']} seeds"
    return (
        f"{often} it reaches the loss that ratio 1 ends with after a median of {speed['steps']:g} steps, against "
        f"{speed['plain_steps']:g} ({speed['times_fewer']:.1f} times as fast)"
    )
