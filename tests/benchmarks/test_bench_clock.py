"""Who is timed when, and what is made of the samples. No time is asserted."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from benchmarks.engine import measure


def test_every_arm_steps_in_every_round_after_the_warm_up() -> None:
    calls: list[str] = []
    steps = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    samples = measure.interleaved(steps, rounds=6, warmup=2)
    assert {name: len(values) for name, values in samples.items()} == {"a": 6, "b": 6, "c": 6}
    assert Counter(calls) == {"a": 8, "b": 8, "c": 8}
    assert all(set(calls[start : start + 3]) == set("abc") for start in range(0, len(calls), 3))


def test_the_order_turns_so_that_no_arm_has_always_the_same_neighbour() -> None:
    orders = [measure.order(list("abc"), number) for number in range(6)]
    assert {order[0] for order in orders} == set("abc")
    before_b = {order[order.index("b") - 1] for order in orders if order[0] != "b"}
    assert before_b == {"a", "c"}


def test_short_steps_are_repeated_within_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Counter[str]()
    monkeypatch.setattr(time, "perf_counter", lambda: 0.001 * calls["step"])  # each step takes a millisecond
    samples = measure.interleaved({"step": lambda: calls.update(["step"])}, rounds=2, warmup=1, sample_s=0.0045)
    assert calls["step"] == 1 + 2 * 5
    assert samples == {"step": pytest.approx([0.001, 0.001])}


def test_a_ratio_is_the_median_of_ratios_within_rounds() -> None:
    found = measure.ratio([1.0, 20.0, 3.0], [2.0, 20.0, 4.0])  # one slow round for both
    assert (found.median, found.count) == (0.75, 3)
    with pytest.raises(ValueError, match="zip"):
        measure.ratio([1.0], [1.0, 2.0])


def test_the_spread_is_median_and_quartiles() -> None:
    assert measure.spread([4.0, 1.0, 2.0, 3.0, 100.0]) == measure.Spread(3.0, 2.0, 4.0, 5)
    assert measure.spread([2.0]) == measure.Spread(2.0, 2.0, 2.0, 1)
