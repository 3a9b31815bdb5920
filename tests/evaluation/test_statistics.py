"""The statistics against closed forms and simulated truth: intervals that cover, verdicts that keep their promise."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from breadth import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qdora_fast.evaluation.statistics import bootstrap_ci, compare_rates, compare_scores, mcnemar, wilson

answers = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60)
KEYS = [
    *("n", "base", "tuned", "difference", "ci95", "base_ci95", "tuned_ci95", "p", "gained", "lost", "detectable"),
    *("verdict", "words"),
]


def flips(n: int, gained: int, lost: int) -> tuple[list[int], list[int]]:
    """Answers of base and tuned model, half of the unchanged ones right."""
    same = [i % 2 for i in range(n - gained - lost)]
    return [0] * gained + [1] * lost + same, [1] * gained + [0] * lost + same


# Wilson and McNemar


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_its_closed_form(counted: tuple[int, int]) -> None:
    right, n = counted
    z = stats.norm.ppf(0.975)
    middle = (right / n + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(right * (n - right) / n**3 + z**2 / (4 * n * n))
    assert wilson(right, n) == pytest.approx((max(0.0, middle - half), min(1.0, middle + half)), abs=1e-12)


def test_wilson_without_rows_knows_nothing_and_never_leaves_its_range() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 7)[0] == 0.0
    assert wilson(7, 7)[1] == 1.0


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_share_of_coins_that_fall_as_far(gained: int, lost: int) -> None:
    changed = gained + lost
    as_far = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1))
    assert mcnemar(gained, lost) == pytest.approx(min(1.0, 2 * as_far / 2**changed), rel=1e-9)
    assert mcnemar(gained, lost) == mcnemar(lost, gained)


def test_mcnemar_of_thousands_of_changes_neither_overflows_nor_takes_long() -> None:
    assert mcnemar(7000, 7042) == pytest.approx(2 * stats.norm.cdf(-41 / math.sqrt(14042)), rel=1e-3)
    assert mcnemar(3, 14000) == 0.0


# The bootstrap

CORRECTED = {
    6: (-0.1465, 0.5074),
    12: (-0.4839, 0.1774),
    20: (-0.8162, -0.1527),
    55: (-0.3033, 0.0668),
    200: (-0.3821, -0.2193),
}
"""By number of rows: the interval of `token_sums`, from a bootstrap with Student's t of its own, before scipy's."""


def token_sums(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Changes of the loss, summed over the tokens of each row, and the tokens."""
    generator = np.random.default_rng(n)
    tokens = generator.integers(3, 80, n)
    return generator.normal(-0.2, 0.5, n) * tokens, tokens


@pytest.mark.parametrize("n", CORRECTED)
def test_the_interval_is_that_of_resampled_rows_widened_for_few_of_them(n: int) -> None:
    sums, tokens = token_sums(n)
    assert bootstrap_ci(sums, tokens) == pytest.approx(CORRECTED[n], rel=1e-3)
    drawn = np.random.default_rng(1).integers(0, n, (10_000, n))
    means = sums[drawn].sum(1) / tokens[drawn].sum(1)
    tail = stats.norm.cdf(-stats.t.ppf(0.975, n - 1) * math.sqrt(n / (n - 1)))
    low, high = np.quantile(means, (tail, 1 - tail))
    assert bootstrap_ci(sums, tokens) == pytest.approx((low, high), abs=0.05 * (high - low))


def test_groups_that_do_not_differ_a_single_one_and_none() -> None:
    assert bootstrap_ci([0.0, 0.0], [3, 4]) == (0.0, 0.0)
    assert bootstrap_ci([0.0], [3]) == (0.0, 0.0)
    assert bootstrap_ci([1.5], [3]) is None
    assert bootstrap_ci([], []) is None
    assert bootstrap_ci([6.0, 8.0], [3, 4]) == pytest.approx((2.0, 2.0))


@pytest.mark.parametrize("n", [6, 12, 55])
def test_the_interval_of_a_loss_weighted_by_tokens_covers_the_truth(n: int) -> None:
    generator = np.random.default_rng(9)
    covered = 0
    for seed in range(200):
        tokens = generator.integers(20, 200, n)
        low, high = bootstrap_ci(generator.normal(0.1, 0.3, n) * tokens, tokens, seed=seed) or (0.0, 0.0)
        covered += low <= 0.1 <= high
    assert 0.91 < covered / 200 < 0.99


# Rates


def test_a_gain_is_told_in_one_sentence() -> None:
    rates = compare_rates([0] * 58, [1] * 57 + [0])
    assert rates.verdict == "better"
    assert rates.words == ("better: 98.3 % against 0.0 % right on 58 rows, a gain of 98.3 points (95 % CI 94.8 to 100)")


def test_a_loss_is_told_by_its_size() -> None:
    rates = compare_rates(*flips(100, 0, 20))
    assert (rates.verdict, rates.difference, rates.gained, rates.lost) == ("worse", -0.2, 0, 20)
    assert rates.ci95 is not None and rates.ci95[0] < -0.2 < rates.ci95[1] < 0
    assert rates.words.startswith("worse: 40.0 % against 60.0 % right on 100 rows, a loss of 20.0 points (95 % CI 1")


def test_too_few_rows_are_called_so_with_what_they_could_show() -> None:
    rates = compare_rates(*flips(58, 2, 1))
    assert rates.verdict == "no evidence"
    assert rates.words.startswith("no evidence of a difference: ")
    assert rates.words.endswith("; with 58 rows only differences of 13 points or more would be seen")


def test_identical_answers_differ_by_exactly_nothing() -> None:
    rates = compare_rates(*flips(40, 0, 0))
    assert (rates.difference, rates.ci95, rates.p, rates.gained, rates.lost) == (0.0, (0.0, 0.0), 1.0, 0, 0)
    assert "no change (95 % CI 0 to 0)" in rates.words


def test_no_rows_and_one_row_work() -> None:
    nothing = compare_rates([], [])
    assert (nothing.n, nothing.base, nothing.difference, nothing.ci95, nothing.p) == (0, None, None, None, 1.0)
    assert nothing.words == "no evidence of a difference: there are no rows to compare"
    one = compare_rates([0], [1])
    assert (one.difference, one.ci95, one.detectable, one.verdict) == (1.0, None, None, "no evidence")
    assert one.words.endswith("with 1 row no difference would be seen")
    assert compare_rates([1], [1]).ci95 == (0.0, 0.0)


def test_a_model_that_gains_every_row_still_has_an_interval() -> None:
    gain, loss = compare_rates([0] * 20, [1] * 20), compare_rates([1] * 20, [0] * 20)
    assert gain.ci95 == (wilson(20, 20)[0], 1.0)
    assert loss.ci95 == (-1.0, -wilson(20, 20)[0])
    assert (gain.verdict, loss.verdict) == ("better", "worse")


@given(answers)
@settings(max_examples=examples(60), deadline=None)
def test_any_answers_give_a_consistent_comparison(pairs: list[tuple[bool, bool]]) -> None:
    base, tuned = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    rates = compare_rates(base, tuned)
    saved = rates.as_json()
    assert list(saved) == KEYS
    assert json.loads(json.dumps(saved, allow_nan=False)) == saved
    if rates.ci95 and rates.base is not None and rates.tuned is not None and rates.difference is not None:
        assert rates.difference == pytest.approx(rates.tuned - rates.base)
        assert -1 <= rates.ci95[0] <= rates.difference + 1e-12
        assert rates.difference - 1e-12 <= rates.ci95[1] <= 1
        assert rates.base_ci95[0] <= rates.base <= rates.base_ci95[1]
    if rates.verdict != "no evidence":
        assert rates.p < 0.05
        assert rates.ci95 is not None and rates.ci95[0] * rates.ci95[1] > 0
        mirrored = compare_rates(tuned, base)
        assert {rates.verdict, mirrored.verdict} == {"better", "worse"}


def test_rates_are_of_right_and_wrong_alone() -> None:
    with pytest.raises(AssertionError, match="0 and 1"):
        compare_rates([0.5], [1])


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    base, tuned = flips(83, 17, 5)
    assert compare_rates(base, tuned, seed=3) == compare_rates(base, tuned, seed=3)
    noise = np.random.default_rng(0).normal(size=83)
    assert compare_scores(noise * 0, noise, seed=3).ci95 != compare_scores(noise * 0, noise, seed=4).ci95


# What the intervals and the verdict promise, on data whose truth is known


@pytest.mark.parametrize("n", [15, 100])
def test_the_interval_of_a_difference_of_rates_covers_the_truth(n: int) -> None:
    generator = np.random.default_rng(5)
    covered = called = 0
    for seed in range(200):
        kind = generator.choice(3, size=n, p=[0.25, 0.15, 0.6])  # gained, lost, unchanged: a true gain of 0.1
        rates = compare_rates(kind == 1, kind == 0, seed=seed)
        assert rates.ci95 is not None
        covered += rates.ci95[0] <= 0.1 <= rates.ci95[1]
        called += rates.verdict == "worse"
    assert covered / 200 > 0.92
    assert called <= 3


@pytest.mark.parametrize("n", [8, 60])
def test_the_interval_of_a_difference_of_scores_covers_the_truth(n: int) -> None:
    generator = np.random.default_rng(6)
    covered = 0
    for seed in range(200):
        shared = generator.normal(size=n)  # hard and easy rows, the same for both models
        scores = compare_scores(shared + generator.normal(size=n), shared + generator.normal(0.3, 1, size=n), seed=seed)
        assert scores.ci95 is not None
        covered += scores.ci95[0] <= 0.3 <= scores.ci95[1]
    assert 0.91 < covered / 200 < 0.99


def test_models_that_do_not_differ_are_seldom_told_apart() -> None:
    generator = np.random.default_rng(7)
    called = 0
    for seed in range(200):
        kind = generator.choice(3, size=80, p=[0.1, 0.1, 0.8])
        called += compare_rates(kind == 1, kind == 0, seed=seed).verdict != "no evidence"
    assert called / 200 < 0.06


@pytest.mark.parametrize(("n", "changed"), [(200, 0.3), (500, 0.1)])
def test_the_detectable_difference_is_found_in_about_four_of_five_cases(n: int, changed: float) -> None:
    lost = round(n * changed / 2)
    detectable = compare_rates(*flips(n, round(n * changed) - lost, lost)).detectable
    assert detectable is not None
    gain, loss = (changed + detectable) / 2, (changed - detectable) / 2
    draws = np.random.default_rng(8).multinomial(n, [gain, loss, 1 - changed], size=2000)
    found = np.mean([mcnemar(int(gained), int(lost)) < 0.05 for gained, lost, _ in draws])
    assert 0.72 < found < 0.88


def test_more_rows_and_fewer_changes_detect_smaller_differences() -> None:
    sizes = [compare_rates(*flips(n, n // 10, n // 10)).detectable or math.inf for n in (10, 100, 1000, 10_000)]
    assert sizes == sorted(sizes, reverse=True)
    assert (compare_rates(*flips(1000, 20, 20)).detectable or 1) < sizes[2]
    assert compare_rates(*flips(5, 0, 0)).detectable is None
    assert (compare_rates(*flips(6, 0, 0)).detectable or 0) <= 1


# Groups


def test_rows_that_stand_there_four_times_are_no_more_evidence() -> None:
    base, tuned = flips(50, 12, 4)
    plain = compare_rates(base, tuned)
    repeated = compare_rates(base * 4, tuned * 4)
    grouped = compare_rates(base * 4, tuned * 4, groups=list(range(50)) * 4)
    width = {each: each.ci95[1] - each.ci95[0] for each in (plain, repeated, grouped) if each.ci95}
    assert width[grouped] > 1.6 * width[repeated]
    assert width[grouped] == pytest.approx(width[plain], rel=1e-9)
    assert grouped.base_ci95 == pytest.approx(plain.base_ci95)
    assert grouped.difference == repeated.difference


def test_groups_of_one_row_each_are_no_groups() -> None:
    base, tuned = flips(30, 9, 2)
    assert compare_rates(base, tuned, groups=[f"row {i}" for i in range(30)]) == compare_rates(base, tuned)


def test_a_single_group_has_no_spread() -> None:
    rates = compare_rates(*flips(30, 20, 0), groups=["one document"] * 30)
    assert (rates.ci95, rates.verdict) == (None, "no evidence")


# Scores


def test_a_lower_loss_is_better_and_a_lower_score_is_worse() -> None:
    before, after = [1.0 + i / 100 for i in range(20)], [0.5 + i / 90 for i in range(20)]
    loss = compare_scores(before, after, higher_is_better=False)
    score = compare_scores(before, after)
    assert (loss.verdict, score.verdict) == ("better", "worse")
    assert loss.difference == score.difference and loss.difference is not None and loss.difference < 0
    assert loss.words.startswith("better: 0.606 against 1.1 on 20 rows, a fall of 0.489 (95 % CI 0.48")
    assert list(loss.as_json()) == ["n", "base", "tuned", "difference", "ci95", "verdict", "words"]


def test_scores_of_fewer_than_six_rows_that_differ_are_no_evidence() -> None:
    base = [0.0] * 40
    assert compare_scores(base, [0.5] * 5 + [0.0] * 35).verdict == "no evidence"
    assert compare_scores(base[:5], [0.5] * 5).verdict == "no evidence"
    assert compare_scores(base[:6], [0.5] * 6).verdict == "better"


def test_scores_of_no_rows_of_one_and_of_equal_ones_work() -> None:
    assert compare_scores([], []).as_json() == {
        **{"n": 0, "base": None, "tuned": None, "difference": None, "ci95": None, "verdict": "no evidence"},
        "words": "no evidence of a difference: there are no rows to compare",
    }
    assert compare_scores([1.0], [2.0]).words == "no evidence of a difference: 2 against 1 on 1 row, a rise of 1"
    same = compare_scores([0.3, 0.7], [0.3, 0.7])
    assert (same.difference, same.ci95) == (0.0, (0.0, 0.0))
    assert "no change" in same.words
