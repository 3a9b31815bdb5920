"""Intervals over a handful of seeds: right against scipy, wide enough by simulation, honest about one run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qdora_fast.recipes.compare.intervals import geometric, interval, paired, ratio

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12)


@settings(deadline=None)
@given(VALUES)
def test_an_interval_is_scipys_where_runs_vary(values: list[float]) -> None:
    found = interval(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    if np.std(values) > 1e-3:
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert (found.low, found.high) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for values in rng.normal(3.0, 0.5, (1000, 5)):
        found = interval(list(values))
        covered += found.low <= 3.0 <= found.high
    assert 930 <= covered <= 970


def test_one_run_has_a_mean_and_no_interval_and_none_has_neither() -> None:
    assert interval([2.0]).as_json() == {"mean": 2.0, "low": None, "high": None, "n": 1}
    assert interval([]).as_json() == {"mean": None, "low": None, "high": None, "n": 0}


def test_a_share_stays_one() -> None:
    found = interval([1.0, 0.95, 1.0], least=0, most=1)
    assert found.high == 1.0
    assert found.low < 0.95


def test_runs_that_agree_to_the_row_are_not_taken_for_certain() -> None:
    sure, counted = interval([0.1] * 5), interval([0.1] * 5, grain=1 / 58)
    assert sure.low == pytest.approx(sure.high)
    assert counted.high - counted.low == pytest.approx(2 * stats.t.ppf(0.975, 4) * (1 / 58) / (12 * 5) ** 0.5)


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 5), st.floats(-10, 10)), st.dictionaries(st.integers(0, 5), st.floats(-10, 10)))
def test_pairs_are_made_of_the_seeds_that_both_have(a: dict[int, float], b: dict[int, float]) -> None:
    there, back = paired(a, b), paired(b, a)
    assert there.n == len(a.keys() & b.keys())
    if there.n:
        assert there.mean == pytest.approx(-back.mean, abs=1e-9)
    if there.n > 1:
        assert there.low == pytest.approx(-back.high, abs=1e-6)


def test_pairing_takes_out_what_the_seeds_have_in_common() -> None:
    common = {1: 5.0, 2: 1.0, 3: 9.0}
    found = paired({seed: value + 0.1 for seed, value in common.items()}, common)
    assert (found.low, found.high) == (pytest.approx(0.1), pytest.approx(0.1))


def test_losses_are_averaged_by_their_logarithms() -> None:
    found = geometric([0.01, 0.1, 1.0])
    assert found.mean == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1**2 / found.high)
    assert found.low > 0


def test_a_ratio_is_the_same_whatever_the_size_of_the_losses() -> None:
    found = ratio({1: 0.9, 2: 90.0, 3: 0.0009}, {1: 1.0, 2: 100.0, 3: 0.001, 4: 7.0})
    assert (found.mean, found.low, found.high, found.n) == (*[pytest.approx(0.9)] * 3, 3)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e308), max_size=6))
def test_losses_of_zero_and_beyond_measure_have_an_interval_too(losses: list[float]) -> None:
    by_seed = dict(enumerate(losses))
    for found in (geometric(losses), ratio(by_seed, by_seed)):
        if len(losses) > 1:
            assert 0 <= found.low <= found.mean * (1 + 1e-9)
            assert found.mean <= found.high * (1 + 1e-9)
