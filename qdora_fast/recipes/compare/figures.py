"""From the results of the trials to the figures of the arms, and to the differences that people argue about.

Everything is paired by seed: two arms with the same seed saw the same rows in the same order, so what the order does to
a run cancels out. Which claims are looked at is fixed here and does not depend on what came out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from qdora_fast.recipes.compare.arms import FULL, Arm
from qdora_fast.recipes.compare.intervals import geometric, interval, paired, ratio

Results = Sequence[Mapping[str, Any]]
PAIRS = (("dora", "lora"), ("qdora", "qlora"), ("qlora", "lora"), ("qdora", "dora"))
"""Does DoRA help; what does a 4-bit base cost."""


def choose_rate(results: Results) -> tuple[float, dict[float, float | None]]:
    """The learning rate with the lowest mean held-out loss, and that mean of each; a run that diverged rules it out."""
    means: dict[float, float | None] = {}
    for rate in dict.fromkeys(result["learning_rate"] for result in results):
        losses = [result["loss"] for result in results if result["learning_rate"] == rate]
        means[rate] = None if None in losses else geometric(losses).mean
    return min(means, key=lambda rate: _or_infinite(means[rate])), means


def of_arms(arms: Sequence[Arm], results: Results) -> dict[str, list[Mapping[str, Any]]]:
    """The results of each arm, by its name, at the learning rate that was best for it."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for arm in arms:
        own = [result for result in results if result["arm"] == arm.name]
        rate, _ = choose_rate(own)
        found[arm.name] = [result for result in own if result["learning_rate"] == rate]
    return found


def default_target(results: Results) -> float | None:
    """The held-out loss at which the median run ends; None where none came to an end."""
    losses = [result["loss"] for result in results if result["loss"] is not None]
    return statistics.median_low(losses) if losses else None


def steps_to(result: Mapping[str, Any], target: float | None) -> int | None:
    """The first measured step at which the held-out loss was at or below `target`; None: not reached."""
    if target is None:
        return None
    return next((step for step, loss in result["curve"] if loss is not None and loss <= target), None)


def describe_arm(
    arm: Arm, results: Results, target: float | None, tried: Mapping[float, float | None]
) -> dict[str, Any]:
    """Figures of one arm over its seeds; `results` are those of its learning rate."""
    losses = [result["loss"] for result in results if result["loss"] is not None]
    steps = [steps_to(result, target) for result in results]
    reached = [step for step in steps if step is not None]
    scores = [score for result in results if (score := _score(result)) is not None]
    return {
        "spoken": arm.spoken,
        "method": arm.method,
        "loraplus": arm.ratio,
        "learning_rate": results[0]["learning_rate"],
        "tried": {f"{rate:g}": loss for rate, loss in tried.items()},
        "seeds": [result["seed"] for result in results],
        "diverged": len(results) - len(losses),
        "loss": geometric(losses).as_json(),
        "losses": losses,
        "score": interval(scores, least=0, most=1, grain=_grain(results)).as_json(),
        "scores": scores,
        "to_target": {
            "median": statistics.median(reached) if reached else None,
            "reached": len(reached),
            "each": steps,
        },
        "step_seconds": statistics.median(result["step_seconds"] for result in results),
        "memory": results[0]["memory"] | {"total": max(result["memory"]["total"] for result in results)},
        "trained_parameters": results[0]["trained_parameters"],
        "curve": _curve(results),
    }


def differences(arms: Sequence[Arm], chosen: Mapping[str, Results]) -> list[dict[str, Any]]:
    """a against b, paired by seed, for every claim these arms allow: PAIRS; LoRA+ against none; each against full."""
    claims = [("method", Arm(a, arm.ratio), Arm(b, arm.ratio)) for a, b in PAIRS for arm in arms if arm.method == b]
    claims += [("loraplus", arm, Arm(arm.method)) for arm in arms if arm.ratio != 1]
    claims += [("full", arm, Arm(FULL)) for arm in arms if arm.method != FULL and arm.ratio == 1]
    return [_difference(about, a, b, chosen[a.name], chosen[b.name]) for about, a, b in claims if {a, b} <= set(arms)]


def _difference(about: str, a: Arm, b: Arm, of_a: Results, of_b: Results) -> dict[str, Any]:
    losses = [{r["seed"]: r["loss"] for r in results if r["loss"] is not None} for results in (of_a, of_b)]
    scores = [{r["seed"]: s for r in results if (s := _score(r)) is not None} for results in (of_a, of_b)]
    found = {
        "about": about,
        "a": a.name,
        "b": b.name,
        "spoken": [a.spoken, b.spoken],
        "loss_ratio": ratio(*losses).as_json(),
        "score": paired(*scores, grain=_grain(of_a)).as_json(),
    }
    return found | ({"speed": _speed(of_a, of_b)} if about == "loraplus" else {})


def _speed(fast: Results, plain: Results) -> dict[str, Any]:
    """How many steps LoRA+ needs to where the same seed ends without it, and how many that one needed itself."""
    ends = {result["seed"]: result for result in plain if result["loss"] is not None}
    pairs = [
        (steps_to(result, ends[result["seed"]]["loss"]), steps_to(ends[result["seed"]], ends[result["seed"]]["loss"]))
        for result in fast
        if result["seed"] in ends
    ]
    reached = [(there, plain_steps) for there, plain_steps in pairs if there and plain_steps]
    return {
        "n": len(pairs),
        "reached": len(reached),
        "steps": _median([there for there, _ in reached]),
        "plain_steps": _median([plain_steps for _, plain_steps in reached]),
        "times_fewer": _median([plain_steps / there for there, plain_steps in reached]),
    }


def _curve(results: Results) -> list[dict[str, Any]]:
    """Held-out loss by step: geometric mean, lowest and highest over the seeds; up to where a run diverged."""
    points = []
    for place in zip(*(result["curve"] for result in results), strict=False):
        losses = [loss for _, loss in place]
        if None in losses:
            break
        points.append({"step": place[0][0], "mean": geometric(losses).mean, "low": min(losses), "high": max(losses)})
    return points


def _score(result: Mapping[str, Any]) -> float | None:
    return statistics.fmean(result["scores"]) if result["scores"] else None


def _grain(results: Results) -> float:
    """What one question counts."""
    return 1 / max(1, len(results[0]["scores"]))


def _or_infinite(value: float | None) -> float:
    return math.inf if value is None else value


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
