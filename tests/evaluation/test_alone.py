"""One model's figures are those of one side of a comparison."""

from __future__ import annotations

import pytest

from qdora_fast.config import EvaluationSettings
from qdora_fast.evaluation.alone import loss_alone, score_alone
from qdora_fast.evaluation.generation import Reply
from qdora_fast.evaluation.heldout import Both, Loss, Question
from qdora_fast.evaluation.statistics import wilson
from qdora_fast.evaluation.task import Answered, judge

SETTINGS = EvaluationSettings(metric="exact_match", max_new_tokens=8)


def _row(number: int, question: str) -> dict:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "yes"}]
    return {"messages": turns, "meta": {"hash": f"{number:064x}", "source": f"x:{number}"}}


def _questions(texts: list[str]) -> list[Question]:
    return [Question("", text, "yes", _row(number, text)) for number, text in enumerate(texts)]


def test_a_share_has_wilsons_interval_over_groups() -> None:
    questions = _questions([f"q{number}" for number in range(20)])
    replies = [Reply("yes" if number < 15 else "", 1, number != 3) for number in range(20)]
    task, scores = score_alone(questions, replies, SETTINGS, "exact_match")
    assert task is not None and (task["value"], task["n"], sum(scores)) == (0.75, 20, 15)
    assert task["ci95"] == pytest.approx(wilson(15, 20))
    assert task["words"].startswith("75.0 % right on 20 rows (95 % CI ")
    assert (task["truncated"], task["empty"]) == (0.05, 0.25)
    both, _ = judge(Answered(questions, Both(replies, replies)), SETTINGS)
    assert both is not None and both["tuned_ci95"] == task["ci95"]
    asked_twice, _ = score_alone(_questions(["q"] * 20), replies, SETTINGS, "exact_match")
    assert asked_twice is not None and asked_twice["ci95"][1] - asked_twice["ci95"][0] > 0.7  # one question, not 20


def test_a_score_and_a_loss_have_the_bootstraps() -> None:
    questions = _questions([f"q{number}" for number in range(12)])
    replies = [Reply("yes" if number % 2 else "no way", 1, True) for number in range(12)]
    task, _ = score_alone(questions, replies, SETTINGS, "chrf")
    assert task is not None and task["ci95"][0] < task["value"] < task["ci95"][1] <= 1
    losses = [Loss(float(number), 2) for number in range(11)] + [Loss(0.0, 0)]
    loss = loss_alone([each.row for each in questions], losses)
    assert loss is not None and (loss["n"], loss["value"]) == (11, pytest.approx(2.5))
    assert loss["ci95"][0] < 2.5 < loss["ci95"][1]


def test_nothing_is_said_of_nothing() -> None:
    assert score_alone([], [], SETTINGS, "exact_match") == (None, [])
    assert score_alone(_questions(["q"]), [Reply("yes", 1, True)], SETTINGS, "likelihood") == (None, [])
    assert loss_alone([], []) is None
    one, _ = score_alone(_questions(["q"]), [Reply("yes", 1, True)], SETTINGS, "chrf")
    assert one is not None and one["ci95"] is None and one["words"].endswith("on 1 row")
