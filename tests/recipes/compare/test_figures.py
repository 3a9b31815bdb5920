"""Figures of arms and differences, from results of trials."""

from __future__ import annotations

from typing import Any

import pytest

from qdora_fast.recipes.compare.arms import Arm, choose_arms
from qdora_fast.recipes.compare.figures import choose_rate, default_target, describe_arm, differences, of_arms, steps_to


def test_the_best_rate_is_that_of_the_lowest_mean_loss(result: Any) -> None:
    results = [
        result("lora", seed, [5, end], rate=rate)
        for seed, end, rate in [(1, 1.0, 1e-3), (2, 3.0, 1e-3), (1, 1.5, 2e-3), (2, 1.7, 2e-3)]
    ]
    rate, means = choose_rate(results)
    assert rate == 2e-3
    assert means == pytest.approx({1e-3: 3**0.5, 2e-3: (1.5 * 1.7) ** 0.5})
    assert [one["learning_rate"] for one in of_arms([Arm("lora")], results)["lora"]] == [2e-3, 2e-3]


def test_a_rate_at_which_a_run_diverged_is_never_the_best(result: Any) -> None:
    results = [
        result("lora", 1, [5, None], rate=1e-2),
        result("lora", 2, [5, 0.1], rate=1e-2),
        result("lora", 1, [5, 2.0], rate=1e-3),
        result("lora", 2, [5, 2.0], rate=1e-3),
    ]
    assert choose_rate(results) == (1e-3, {1e-2: None, 1e-3: 2.0})


def test_the_target_is_where_the_median_run_ends_and_is_reached_at_the_first_measurement_below(result: Any) -> None:
    results = [result("lora", seed, [5, 3, 2.5, end]) for seed, end in ((1, 2.0), (2, 1.0), (3, 4.0))]
    assert default_target(results) == 2.0
    assert [steps_to(one, 2.0) for one in results] == [30, 30, None]
    assert [steps_to(one, 3.0) for one in results] == [10, 10, 10]
    assert default_target([result("lora", 1, [5, None])]) is None
    assert steps_to(results[0], None) is None


def test_an_arm_says_how_many_of_its_runs_reached_the_target_and_how_many_diverged(result: Any) -> None:
    results = [result("dora", 1, [5, 2, 1]), result("dora", 2, [5, 3, 2.5]), result("dora", 3, [5, 9, None])]
    arm = describe_arm(Arm("dora"), results, 1.5, {})
    assert arm["to_target"] == {"median": 20, "reached": 1, "each": [20, None, None]}
    assert arm["diverged"] == 1
    assert arm["losses"] == [1, 2.5]
    assert arm["loss"]["mean"] == pytest.approx(2.5**0.5), "the geometric mean"
    assert arm["score"]["mean"] == pytest.approx(0.8)
    assert arm["curve"] == [
        {"step": 0, "mean": pytest.approx(5), "low": 5, "high": 5},
        {"step": 10, "mean": pytest.approx(54 ** (1 / 3)), "low": 2, "high": 9},
    ]


def test_differences_are_those_of_the_claims_and_paired_by_seed(result: Any) -> None:
    arms = choose_arms(["lora", "dora", "full"], [1, 16])
    ends = {"lora": 1.0, "lora-plus16": 0.8, "dora": 0.9, "dora-plus16": 0.7, "full": 0.5}
    results = [
        result(arm.name, seed, [5, ends[arm.name] * noise])
        for seed, noise in ((1, 1.0), (2, 20.0), (3, 0.3))
        for arm in arms
    ]
    found = differences(arms, of_arms(arms, results))
    assert [(one["about"], one["a"], one["b"]) for one in found] == [
        ("method", "dora", "lora"),
        ("method", "dora-plus16", "lora-plus16"),
        ("loraplus", "lora-plus16", "lora"),
        ("loraplus", "dora-plus16", "dora"),
        ("full", "lora", "full"),
        ("full", "dora", "full"),
    ]
    ratios = [one["loss_ratio"] for one in found]
    assert [one["mean"] for one in ratios] == pytest.approx([0.9, 0.7 / 0.8, 0.8, 0.7 / 0.9, 2.0, 0.9 / 0.5])
    assert all(one["high"] - one["low"] < 1e-6 for one in ratios), "the noise is the seed's"


def test_loraplus_is_timed_to_where_the_same_seed_ends_without_it(result: Any) -> None:
    arms = choose_arms(["lora"], [1, 16])
    results = [
        result("lora", 1, [5, 4, 3, 2]),
        result("lora-plus16", 1, [5, 2, 3, 4]),
        result("lora", 2, [5, 4, 1, 2]),
        result("lora-plus16", 2, [5, 4, 2, 1]),
        result("lora", 3, [5, 4, 3, 1]),
        result("lora-plus16", 3, [5, 4, 3, 2]),
    ]
    (found,) = differences(arms, of_arms(arms, results))
    assert found["speed"] == {"n": 3, "reached": 2, "steps": 15, "plain_steps": 25, "times_fewer": 2.0}


def test_a_seed_that_diverged_in_one_arm_is_no_pair(result: Any) -> None:
    arms = choose_arms(["lora", "dora"], [1])
    results = [
        result("lora", 1, [5, 2]),
        result("dora", 1, [5, 1]),
        result("lora", 2, [5, 2]),
        result("dora", 2, [5, None]),
    ]
    (found,) = differences(arms, of_arms(arms, results))
    assert found["loss_ratio"] == {"mean": pytest.approx(0.5), "low": None, "high": None, "n": 1}
