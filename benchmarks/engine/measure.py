"""The clock. All arms in one process, round by round, so that whatever disturbs the machine disturbs all of them.

The order of the arms turns by one each round and is reversed in every second, so that no arm always runs in the warm
cache of the same neighbour. Short steps are repeated until a sample lasts long enough to be timed. Medians and
quartiles, because a shared machine has outliers on one side only; a ratio is the median of the ratios within rounds.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a figure."""

    median: float
    lower: float
    upper: float
    count: int

    def as_dict(self) -> dict[str, float]:
        """For the JSON line."""
        return asdict(self)


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    lower, median, upper = quartiles
    return Spread(median, lower, upper, len(values))


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Of two arms' samples, paired by round."""
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def interleaved(
    steps: Mapping[str, Callable[[], None]],
    *,
    rounds: int,
    warmup: int,
    sample_s: float = 0.0,
    device: str = "cpu",
    on_round: Callable[[], Any] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of one step, one sample an arm and round."""
    for _ in range(max(1, warmup)):
        slowest = max(_seconds(step, 1, device) for step in steps.values())
        on_round()
    repeats = max(1, math.ceil(sample_s / max(slowest, 1e-9)))
    samples: dict[str, list[float]] = {name: [] for name in steps}
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            for name in order(list(steps), number):
                samples[name].append(_seconds(steps[name], repeats, device))
            on_round()
    finally:
        gc.enable()
    return samples


def order(names: list[str], number: int) -> list[str]:
    """The order of arms in a round."""
    start = number % len(names)
    turned = names[start:] + names[:start]
    return turned[::-1] if number % 2 else turned


def _seconds(step: Callable[[], None], repeats: int, device: str) -> float:
    synchronize(device)
    begun = time.perf_counter()
    for _ in range(repeats):
        step()
    synchronize(device)
    return (time.perf_counter() - begun) / repeats


def synchronize(device: str) -> None:
    """Wait for the GPU; nothing on the CPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
