"""Means over seeds with Student's 95 % interval, also of paired differences.

With three or five seeds the normal interval would be far too narrow (of three values it covers 81 %, not 95 %), and a
bootstrap over so few hardly better; Student's assumes that runs vary about normally, which losses of one recipe do well
enough. Losses are positive and vary by factors, so theirs are taken of logarithms: geometric means, ratios as
differences. It speaks of the seeds alone: all runs share the data, so it says nothing of what other rows would give.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEAST = 1e-12
"""What a loss of 0 counts as."""
MOST = 700.0
"""Largest exponent: two runs that disagree by orders of magnitude have an interval up to anything."""


@dataclass(frozen=True)
class Interval:
    """A mean over `n` runs and its 95 % interval; `low` and `high` are None where one run cannot tell."""

    mean: float | None
    low: float | None
    high: float | None
    n: int

    def as_json(self) -> dict[str, float | int | None]:
        """For the record."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}


def interval(
    values: Sequence[float], *, least: float = -math.inf, most: float = math.inf, grain: float = 0.0
) -> Interval:
    """The mean of `values` and its interval, cut to what the quantity can be.

    Args:
        least, most: limits of the quantity itself, for instance 0 and 1 of a share.
        grain: step in which it is counted, 1/58 for a share of 58 rows. Runs that agree to the row do not vary by
            nothing but by less than a row, so no less than the standard deviation of rounding is assumed.
    """
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return Interval(values[0] if values else None, None, None, n)
    mean = statistics.fmean(values)
    spread = max(statistics.stdev(values), grain / math.sqrt(12))
    half = t.ppf(0.975, n - 1) * spread / math.sqrt(n)
    return Interval(mean, max(least, float(mean - half)), min(most, float(mean + half)), n)


def paired(a: Mapping[int, float], b: Mapping[int, float], *, grain: float = 0.0) -> Interval:
    """The mean of a - b over the seeds that both have."""
    return interval([a[seed] - b[seed] for seed in a if seed in b], grain=grain)


def geometric(values: Sequence[float]) -> Interval:
    """The geometric mean of values that are not negative, with the interval of their logarithms."""
    return _raised(interval([_logarithm(value) for value in values]))


def ratio(a: Mapping[int, float], b: Mapping[int, float]) -> Interval:
    """The geometric mean of a / b over the seeds that both have: 0.9 is a tenth less."""
    return _raised(paired(*({seed: _logarithm(value) for seed, value in one.items()} for one in (a, b))))


def _logarithm(value: float) -> float:
    return math.log(max(value, LEAST))


def _raised(found: Interval) -> Interval:
    mean, low, high = (None if end is None else math.exp(min(end, MOST)) for end in (found.mean, found.low, found.high))
    return Interval(mean, low, high, found.n)
