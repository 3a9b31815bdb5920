"""Is the difference between base and tuned model more than chance? Paired statistics, and a verdict in words.

Both models answer the same questions, so that each question is compared with itself: what counts are the answers that
changed. For right and wrong (`compare_rates`) that is McNemar's exact test, for scores and losses
(`compare_scores`, `compare_losses`) the bootstrap alone. "better" and "worse" are said only when

- the 95 % interval of the difference excludes 0: 10,000 resamples of the rows, or of their groups where several rows
  belong together, since the rows of one document or of one question asked twice are not independent;
- and, for rates, the exact test gives p < 0.05; for scores, at least 6 rows differ, since fewer can all point one way
  by chance (2 / 2^5 > 0.05).

Losses (`compare_losses`) are compared like scores, each row weighted by its tokens. A few long rows could then decide,
so the exact sign test over groups must give p < 0.05 as well.

Everything else is "no evidence", together with the smallest difference that these rows could have shown: it is no
proof that the models are equal. Everything here is a number from 0 to 1; points are only in the words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

Interval = tuple[float, float]
Verdict = Literal["better", "no evidence", "worse"]

RESAMPLES = 10_000
FEWEST = 6
"""Rows that must differ before any test can say so at 5 %."""
ROUNDING = 1e-4
"""Nats per token by which a row's loss may change without having changed: what rounding makes of the same function."""
NO_ROWS = "no evidence of a difference: there are no rows to compare"
_CHUNK = 1_000_000
"""Drawn rows held at once: 8 MiB of indices and as much of values."""
_NORMAL = NormalDist()
_Z = _NORMAL.inv_cdf(0.975)
_POWER = _NORMAL.inv_cdf(0.8)


@dataclass(frozen=True)
class _Outcome:
    """What all outcomes can: be told, and be written to a file."""

    @property
    def words(self) -> str:
        """Verdict and figures in one sentence."""
        raise NotImplementedError

    def as_json(self) -> dict[str, Any]:
        """Plain values by field name, and the words; an interval is [low, high]."""
        return _plain(asdict(self) | {"words": self.words})


@dataclass(frozen=True)
class Rates(_Outcome):
    """Shares of right answers, compared. None stands for what cannot be said about so few rows."""

    n: int
    base: float | None
    """Share of right answers; None without rows."""
    tuned: float | None
    difference: float | None
    """tuned - base."""
    ci95: Interval | None
    """Of the difference; None for a single row (or group) that differs, which has no spread."""
    base_ci95: Interval
    """Wilson's interval of one model's share; of no use to compare the two."""
    tuned_ci95: Interval
    p: float
    """Exact two-sided p of McNemar's test, over rows also where they are in groups."""
    gained: int
    """Rows that only the tuned model answers rightly."""
    lost: int
    """Rows that only the base answers rightly."""
    detectable: float | None
    """Smallest true difference that such a comparison finds in 80 % of cases; None: not even one of 100 points."""
    verdict: Verdict

    @property
    def words(self) -> str:
        """Verdict and figures in one sentence."""
        if self.base is None or self.tuned is None or self.difference is None:
            return NO_ROWS
        figures = f"{100 * self.tuned:.1f} % against {100 * self.base:.1f} % right on {_rows(self.n)}"
        change = f"{'gain' if self.difference > 0 else 'loss'} of {100 * abs(self.difference):.1f} points"
        spread = _spread(self.ci95, lambda share: f"{round(100 * share, 1):g}", turned=self.difference < 0)
        if self.verdict != "no evidence":
            return f"{self.verdict}: {figures}, a {change}{spread}"
        seen = (
            f"only differences of {_rounded_up(self.detectable)} points or more" if self.detectable else "no difference"
        )
        change = f"a {change}" if self.difference else "no change"
        return f"no evidence of a difference: {figures}, {change}{spread}; with {_rows(self.n)} {seen} would be seen"


@dataclass(frozen=True)
class Scores(_Outcome):
    """Means of scores or losses, compared."""

    n: int
    base: float | None
    """Mean; None without rows."""
    tuned: float | None
    difference: float | None
    """tuned - base, whichever is the better direction."""
    ci95: Interval | None
    verdict: Verdict

    @property
    def words(self) -> str:
        """Verdict and figures in one sentence."""
        if self.base is None or self.tuned is None or self.difference is None:
            return NO_ROWS
        outcome, change = _told(self.verdict, self.difference, self.ci95)
        figures = f"{self.tuned:.3g} against {self.base:.3g} on {_rows(self.n)}"
        return f"{outcome}: {figures}, {change}"


@dataclass(frozen=True)
class Losses(_Outcome):
    """How well the reference tokens of the same rows are predicted, compared; in nats per token, less is better."""

    n: int
    base: float | None
    """Mean over all tokens; None without rows."""
    tuned: float | None
    difference: float | None
    """tuned - base: negative where the references became likelier."""
    ci95: Interval | None
    likelier: int
    """Rows whose reference is likelier to the tuned model."""
    less_likely: int
    """Rows whose reference is less likely to it."""
    p: float
    """Exact two-sided p of the sign test, over groups."""
    verdict: Verdict

    @property
    def words(self) -> str:
        """Verdict and figures in one sentence."""
        if self.base is None or self.tuned is None or self.difference is None:
            return NO_ROWS
        outcome, change = _told(self.verdict, self.difference, self.ci95)
        return (
            f"{outcome}: the reference became likelier on {self.likelier:,} of {_rows(self.n)}; {self.tuned:.3f} "
            f"against {self.base:.3f} nats per token, {change}"
        )


def compare_rates(
    base: Sequence[float], tuned: Sequence[float], *, groups: Sequence[Hashable] | None = None, seed: int = 0
) -> Rates:
    """Compare right and wrong answers to the same questions.

    Where all rows are gained, or all are lost, resampling shows no spread; the near limit is then Wilson's.

    Args:
        base: 1 for right, 0 for wrong, one a row.
        tuned: the same of the tuned model, in the same order.
        groups: the group of each row; rows of a group are drawn together. None: each row by itself.
        seed: of the bootstrap. The same seed gives the same bits.
    """
    before, after = np.asarray(base, dtype=float), np.asarray(tuned, dtype=float)
    assert np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all(), "rates are made of 0 and 1"
    n = len(before)
    sums, sizes = _grouped(after - before, groups)
    gained, lost = int((after > before).sum()), int((after < before).sum())
    p = mcnemar(gained, lost)
    interval = bootstrap_ci(sums, sizes, seed=seed)
    if interval is not None and n in (gained, lost):
        near = wilson(len(sums), len(sums))[0]
        interval = (near, 1.0) if gained else (-1.0, -near)
    return Rates(
        n=n,
        base=float(before.mean()) if n else None,
        tuned=float(after.mean()) if n else None,
        difference=(gained - lost) / n if n else None,
        ci95=interval,
        base_ci95=_wilson_of_groups(before, len(sums)),
        tuned_ci95=_wilson_of_groups(after, len(sums)),
        p=p,
        gained=gained,
        lost=lost,
        detectable=_detectable((gained + lost) / n, len(sums)) if n else None,
        verdict=_verdict(interval) if p < 0.05 else "no evidence",
    )


def compare_scores(
    base: Sequence[float],
    tuned: Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
    higher_is_better: bool = True,
    seed: int = 0,
) -> Scores:
    """Compare scores or losses of the same rows; all must be finite. Arguments as for `compare_rates`."""
    before, after = np.asarray(base, dtype=float), np.asarray(tuned, dtype=float)
    n = len(before)
    sums, sizes = _grouped(after - before, groups)
    interval = bootstrap_ci(sums, sizes, seed=seed)
    better = interval if higher_is_better else _turned(interval)
    return Scores(
        n=n,
        base=float(before.mean()) if n else None,
        tuned=float(after.mean()) if n else None,
        difference=float(sums.sum() / n) if n else None,
        ci95=interval,
        verdict=_verdict(better) if np.count_nonzero(sums) >= FEWEST else "no evidence",
    )


def compare_losses(
    base: Sequence[float],
    tuned: Sequence[float],
    tokens: Sequence[int],
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Losses:
    """Compare the losses of the same rows.

    Args:
        base: of each row, summed over its tokens, in nats; all must be finite.
        tuned: the same of the tuned model, in the same order.
        tokens: of each row, at least one in all.
        groups, seed: as for `compare_rates`.
    """
    n, total = len(base), int(np.sum(tokens))
    moved = _moved(base, tuned, tokens)
    sums, sizes = changes(base, tuned, tokens, groups=groups)
    interval = bootstrap_ci(sums, sizes, seed=seed)
    of_groups = _grouped(moved, groups)[0]
    p = mcnemar(int((of_groups < 0).sum()), int((of_groups > 0).sum()))
    return Losses(
        n=n,
        base=float(np.sum(base)) / total if n else None,
        tuned=float(np.sum(tuned)) / total if n else None,
        difference=float(sums.sum()) / total if n else None,
        ci95=interval,
        likelier=int((moved < 0).sum()),
        less_likely=int((moved > 0).sum()),
        p=p,
        verdict=_verdict(_turned(interval)) if p < 0.05 else "no evidence",
    )


def changes(
    base: Sequence[float],
    tuned: Sequence[float],
    tokens: Sequence[int],
    *,
    groups: Sequence[Hashable] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Change of the loss and number of tokens of each group, for `bootstrap_ci`; arguments as for `compare_losses`."""
    sums, _ = _grouped(np.asarray(tuned, dtype=float) - np.asarray(base, dtype=float), groups)
    return sums, _grouped(np.asarray(tokens, dtype=float), groups)[0]


def wilson(right: int, n: int) -> Interval:
    """Wilson's 95 % interval of a share of right answers; (0, 1) without rows."""
    from scipy.stats import binomtest

    if not n:
        return 0.0, 1.0
    interval = binomtest(right, n).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p: as many changed answers, each a fair coin, fall at least as far to one side."""
    from scipy.stats import binomtest

    changed = gained + lost
    return float(binomtest(min(gained, lost), changed).pvalue) if changed else 1.0


def _wilson_of_groups(answers: np.ndarray, groups: int) -> Interval:
    """Wilson's interval of the share of right rows, as if each group were one row; their number is rounded."""
    return wilson(round(float(answers.mean()) * groups) if groups else 0, groups)


def _grouped(differences: np.ndarray, groups: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the differences and number of rows of each group, in order of appearance; both [groups]."""
    number: dict[Hashable, int] = {}
    of_row = [
        number.setdefault(group, len(number)) for group in (range(len(differences)) if groups is None else groups)
    ]
    assert len(of_row) == len(differences)
    return np.bincount(of_row, differences, len(number)), np.bincount(of_row, minlength=len(number))


def bootstrap_ci(
    sums: Sequence[float] | np.ndarray, sizes: Sequence[int] | np.ndarray, *, seed: int = 0
) -> Interval | None:
    """95 % bootstrap interval of sum(sums) / sum(sizes), groups resampled; None where one group alone differs from 0.

    Args:
        sums: of each group (a row, say), over its members (its tokens).
        sizes: members of each group.
        seed: the same seed gives the same bits.

    The share cut off at each end is a little below 2.5 %, as Student's t is wider than the normal distribution:
    the plain percentiles of a few rows are too narrow, by three tenths for 6 rows.
    """
    from scipy import stats

    sums, sizes = np.asarray(sums, dtype=float), np.asarray(sizes)
    count = len(sums)
    if count and not sums.any():
        return 0.0, 0.0
    if count < 2:
        return None

    def mean(sums: np.ndarray, sizes: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(sums.sum(axis) / np.maximum(sizes.sum(axis), 1))

    tail = stats.norm.cdf(-stats.t.ppf(0.975, count - 1) * math.sqrt(count / (count - 1)))
    interval = stats.bootstrap(
        (sums, sizes),
        mean,
        paired=True,
        n_resamples=RESAMPLES,
        batch=max(1, _CHUNK // count),
        confidence_level=1 - 2 * tail,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _detectable(changed: float, n: int) -> float | None:
    """Smallest true difference d that McNemar's test on n rows finds with 80 % power at two-sided 5 %.

    Normal approximation: sqrt(n) d = 1.96 sqrt(c) + 0.84 sqrt(c - d^2), where c is the share of answers that change.
    c is the observed share, but at least d: with none observed, all changes are assumed to go in one direction. It is
    never less than 6 of the n rows, since the exact test cannot find less. With groups n is their number.
    """

    def power(d: float) -> float:
        share = max(changed, d)
        return math.sqrt(n) * d - _Z * math.sqrt(share) - _POWER * math.sqrt(max(0.0, share - d * d))

    if n < FEWEST:
        return None
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= 0 else (middle, high)
    return max(high, FEWEST / n)


def _verdict(better: Interval | None) -> Verdict:
    if better is None or better[0] <= 0 <= better[1]:
        return "no evidence"
    return "better" if better[0] > 0 else "worse"


def _moved(base: Sequence[float], tuned: Sequence[float], tokens: Sequence[int]) -> np.ndarray:
    """Change of each row's loss, 0 where rounding may have made it."""
    change = np.asarray(tuned, dtype=float) - np.asarray(base, dtype=float)
    return np.where(np.abs(change) <= ROUNDING * np.asarray(tokens, dtype=float), 0.0, change)


def _turned(interval: Interval | None) -> Interval | None:
    """The interval of the opposite number."""
    return None if interval is None else (-interval[1], -interval[0])


def _told(verdict: Verdict, difference: float, interval: Interval | None) -> tuple[str, str]:
    """The verdict, and the change of a mean with its interval: "a fall of 0.2 (95 % CI 0.1 to 0.3)"."""
    change = f"a {'rise' if difference > 0 else 'fall'} of {abs(difference):.3g}" if difference else "no change"
    spread = _spread(interval, lambda value: f"{value:.3g}", turned=difference < 0)
    return verdict if verdict != "no evidence" else "no evidence of a difference", f"{change}{spread}"


def _spread(interval: Interval | None, show: Callable[[float], str], *, turned: bool = False) -> str:
    """ " (95 % CI 94.8 to 100)"; turned for the size of a loss."""
    if interval is None:
        return ""
    low, high = (_turned(interval) or interval) if turned else interval
    return f" (95 % CI {show(low + 0.0)} to {show(high + 0.0)})"


def _rounded_up(share: float) -> str:
    """Points: 13 for 0.121, 2.4 for 0.0232."""
    return f"{math.ceil(100 * share)}" if share >= 0.1 else f"{math.ceil(1000 * share) / 10:g}"


def _rows(n: int) -> str:
    return f"{n:,} row{'' if n == 1 else 's'}"


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}
