"""What is said of a difference: no more than its interval allows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdora_fast.recipes.compare.words import interval_words, limits, sentence, steps_words, tried_words


def _found(mean: float | None, low: float | None, high: float | None) -> dict[str, Any]:
    return {"mean": mean, "low": low, "high": high, "n": 0 if mean is None else 1 if low is None else 5}


def _difference(loss: dict[str, Any], score: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"spoken": ["DoRA", "LoRA"], "loss_ratio": loss, "score": score, **more}


def test_a_difference_that_holds_is_said_with_its_size_and_interval() -> None:
    said = sentence(_difference(_found(0.9, 0.85, 0.95), _found(0.02, 0.01, 0.03)), "accuracy")
    assert said == (
        "DoRA against LoRA: held-out loss lower: -10.0 % (95 % CI -15.0 % to -5.0 %); "
        "accuracy higher: +2.0 points (95 % CI +1.0 to +3.0)"
    )


def test_a_difference_for_the_worse_cannot_be_overlooked() -> None:
    said = sentence(_difference(_found(1.2, 1.1, 1.3), _found(-0.02, -0.03, -0.01)), "accuracy")
    assert "held-out loss HIGHER: +20.0 %" in said
    assert "accuracy LOWER: -2.0 points" in said


def test_large_changes_are_said_as_factors() -> None:
    said = sentence(_difference(_found(6.0, 2.5, 14.4), _found(0.0, -0.1, 0.1)), "accuracy")
    assert "held-out loss HIGHER: 6.0 times (95 % CI 2.5 to 14)" in said


@settings(deadline=None)
@given(st.floats(1e-3, 1), st.floats(1, 1e3), st.floats(0, 1))
def test_whatever_the_mean_an_interval_of_no_change_is_no_evidence(low: float, high: float, share: float) -> None:
    mean = low + share * (high - low)
    said = sentence(_difference(_found(mean, low, high), _found(mean - 1, low - 1, high - 1)), "accuracy")
    assert said.count("no evidence of a difference") == 2
    assert "HIGHER" not in said
    assert "lower" not in said


def test_one_seed_is_no_evidence_of_anything() -> None:
    said = sentence(_difference(_found(-0.5, None, None), _found(0.5, None, None)), "accuracy")
    assert said.count("no evidence of a difference") == 2
    assert said.count("one seed, no interval") == 2


def test_an_arm_without_a_finished_run_is_said_to_have_none() -> None:
    said = sentence(_difference(_found(None, None, None), _found(None, None, None)), "accuracy")
    assert said == "DoRA against LoRA: no pair of runs with a held-out loss"


@pytest.mark.parametrize(
    ("speed", "words"),
    [
        (
            {"n": 5, "reached": 4, "steps": 250, "plain_steps": 500, "times_fewer": 2.0},
            "in 4 of 5 seeds it reaches the loss that ratio 1 ends with after a median of 250 steps, against 500 "
            "(2.0 times as fast)",
        ),
        (
            {"n": 5, "reached": 0, "steps": None, "plain_steps": None, "times_fewer": None},
            "it does not reach the loss that ratio 1 ends with in any of 5 seeds",
        ),
    ],
)
def test_loraplus_is_judged_by_the_steps_to_the_same_loss(speed: dict[str, Any], words: str) -> None:
    loss = _found(-0.1, -0.2, 0.1)
    assert sentence(_difference(loss, loss, speed=speed), "accuracy").endswith(words)


def test_a_target_that_was_missed_is_not_reached() -> None:
    assert steps_words({"median": None, "reached": 0, "each": [None, None]}) == "not reached"
    assert steps_words({"median": 25.0, "reached": 1, "each": [25, None]}) == "25 (1 of 2)"


def test_an_interval_is_written_with_what_is_known_of_it() -> None:
    assert interval_words(_found(0.5, 0.25, 0.75), ".1f", 100) == "50.0 (25.0-75.0)"
    assert interval_words(_found(0.5, None, None)) == "0.5000"
    assert interval_words(_found(None, None, None)) == "–"


def _record(seeds: int, tried: dict[str, float], best: float, diverged: int = 0) -> dict[str, Any]:
    arm = {"spoken": "DoRA", "tried": tried, "learning_rate": best, "diverged": diverged}
    return {
        "seeds": list(range(seeds)),
        "differences": [{}] * 5,
        "dataset": {"asked": 58},
        "arms": {"dora": arm},
        "clock": "on a processor",
        "memory_counts": "weights",
    }


def test_the_reader_is_told_what_the_intervals_leave_out() -> None:
    said = "\n".join(limits(_record(5, {"0.001": 1.0}, 0.001)))
    assert "over 5 seeds" in said
    assert "10 intervals of differences, not corrected for their number: about 0.5" in said
    assert "all adapters share one learning rate" in said
    assert "diverged" not in said
    assert "one seed" in limits(_record(1, {"0.001": 1.0}, 0.001))[0]


def test_the_reader_is_told_how_the_rate_was_chosen_and_when_it_may_lie_further_out() -> None:
    tried = {"0.0005": 3.0, "0.001": 1.0, "0.002": 2.0}
    inside, edge = (limits(_record(5, tried, best)) for best in (0.001, 0.002))
    assert any("chosen on the rows that are reported" in words for words in inside)
    assert not any("may lie beyond" in words for words in inside)
    assert any("may lie beyond: DoRA" in words for words in edge)
    assert any("left out of the means of: DoRA" in words for words in limits(_record(5, tried, 0.001, diverged=2)))


def test_the_rates_that_were_tried_are_listed_with_the_one_that_was_taken() -> None:
    arm = {"spoken": "DoRA", "tried": {"0.001": 0.5, "0.01": None}, "learning_rate": 1e-3}
    assert tried_words(arm) == "DoRA: 0.001: 0.5000 (taken), 0.01: diverged"
