"""Packing against its bounds, the suggested maximum against what it promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdora_fast.data.clean.lengths import TokenReport, describe_tokens, pack

lengths = st.lists(st.integers(1, 300), min_size=1, max_size=200).map(lambda values: np.array(values, np.int32))


def described(values: np.ndarray, **changes: object) -> TokenReport:
    arguments: dict = {"beyond": [], "max_length": 256, "limit": 230, "fraction": 0.9, "truncated": 0}
    arguments |= {"too_short": 0, "flags": {}} | changes
    return describe_tokens(values, values // 2, **arguments)


@given(lengths)
def test_packing_lies_between_its_bounds(values: np.ndarray) -> None:
    sequences, filled = pack(values, 300)
    assert -(-int(values.sum()) // 300) <= sequences <= len(values)
    assert filled == pytest.approx(values.sum() / (sequences * 300))


def test_packing_is_perfect_where_it_can_be() -> None:
    assert pack(np.array([100, 200, 150, 150]), 300) == (2, 1.0)
    assert pack(np.array([200, 200]), 300) == (2, pytest.approx(2 / 3))
    assert pack(np.zeros(0, np.int32), 300) == (0, 0.0)


def test_a_large_set_is_estimated_from_a_part() -> None:
    values = np.random.default_rng(1).integers(20, 400, 40_000)
    sequences, filled = pack(values, 512)
    assert sequences == pytest.approx(values.sum() / 512 / filled, rel=0.01)
    assert filled > 0.97


@given(lengths, st.lists(st.integers(301, 900), max_size=50))
def test_the_histogram_holds_every_row_and_the_suggestion_keeps_99_percent(values: np.ndarray, beyond: list) -> None:
    report = described(values, beyond=beyond)
    assert sum(report.counts) == len(values) + len(beyond)
    assert report.too_long == len(beyond)
    assert report.suggested_max_length % 64 == 0
    kept = sum(length <= 0.9 * report.suggested_max_length for length in [*values.tolist(), *beyond])
    assert kept >= 0.99 * (len(values) + len(beyond)) - 1


def test_nothing_at_all_is_described_too() -> None:
    report = described(np.zeros(0, np.int32))
    assert (report.total, report.longest, report.trained_share) == (0, 0, 0.0)
    assert report.as_json()["packing"]["sequences"] == 0


def test_figures_are_what_they_say() -> None:
    report = described(np.array([10, 20, 30, 40]))
    assert (report.total, report.trained, report.longest, report.mean) == (100, 50, 40, 25.0)
    assert report.trained_share == 0.5
    assert report.as_json()["tokens"]["histogram"]["edges"][-1] == 256
