"""From replies to the `task` and `heldout_loss` of an evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qdora_fast.config import EvaluationSettings
from qdora_fast.evaluation.generation import Reply
from qdora_fast.evaluation.heldout import Both, Loss, Question
from qdora_fast.evaluation.statistics import bootstrap_ci
from qdora_fast.evaluation.task import Answered, Read, check, judge, measure_loss
from qdora_fast.system.errors import ConfigError, DataError


def answered(*pairs: tuple[str, str, str]) -> Answered:
    """(reference, base, tuned) of each question; an answer that ends with "..." ran into the limit."""
    rows: list[Any] = [
        {
            "messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": reference}],
            "tools": None,
            "meta": {"source": f"rows:{i}", "row": i, "hash": str(i)},
        }
        for i, (reference, _, _) in enumerate(pairs)
    ]
    questions = [
        Question(f"q{i}:", f"q{i}", pair[0], row) for i, (pair, row) in enumerate(zip(pairs, rows, strict=True))
    ]
    replies = [[Reply(pair[side], 3, not pair[side].endswith("...")) for pair in pairs] for side in (1, 2)]
    return Answered(questions, Both(*replies))


def test_accuracy_is_paired_and_says_who_changed() -> None:
    pairs = [("Paris", "Rome", "paris."), ("Oslo", "Oslo", "Bern"), ("Lima", "Quito", "Lima")] * 4
    task, right = judge(answered(*pairs), EvaluationSettings(metric="normalized_match"))
    assert task is not None
    assert (task["metric"], task["n"], task["gained"], task["lost"]) == ("normalized_match", 12, 8, 4)
    assert (task["base"], task["tuned"], task["difference"]) == pytest.approx((1 / 3, 2 / 3, 1 / 3))
    assert right[:3] == [(0, 1), (1, 0), (0, 1)]
    assert task["ci95"][0] <= task["difference"] <= task["ci95"][1]


def test_what_was_cut_or_empty_is_counted_for_each_model() -> None:
    task, _ = judge(answered(("a", "", "a"), ("b", "b b b ...", "b")), EvaluationSettings(metric="normalized_match"))
    assert task is not None
    assert task["truncated"] == {"base": 0.5, "tuned": 0.0}
    assert task["empty"] == {"base": 0.5, "tuned": 0.0}


def test_an_answer_that_ended_within_its_reasoning_is_none_and_counted() -> None:
    asked = answered(("a", "a", ""), ("b", "b", "b"))
    asked.replies.tuned[0] = Reply("", 9, False, "a or", in_thought=True)
    asked.replies.tuned[1] = Reply("b", 9, True, "a is no b")
    task, right = judge(asked, EvaluationSettings(metric="normalized_match"))
    assert task is not None
    assert task["in_thought"] == {"base": 0.0, "tuned": 0.5}
    assert right == [(1, 0), (1, 1)]
    assert asked.replies.tuned[1].shown == "<think>\na is no b\n</think>\n\nb"
    assert "in_thought" not in (judge(answered(("a", "a", "a")), EvaluationSettings(metric="exact_match"))[0] or {})


def test_more_metrics_stand_beside_and_decide_nothing() -> None:
    settings = EvaluationSettings(metric="exact_match", more_metrics=["contains", "numeric"])
    task, _ = judge(answered(("7", "it is 7", "7"), ("12", "none", "#### 12")), settings)
    assert task is not None
    assert (task["base"], task["tuned"]) == (0.0, 0.5)
    assert (task["more"]["numeric"]["base"], task["more"]["numeric"]["tuned"]) == (0.5, 1.0)
    assert task["more"]["contains"]["tuned"] == 1.0


def test_a_reference_that_cannot_be_judged_is_found_before_anything_is_asked() -> None:
    questions = answered(("#### 7", "", ""), ("no number here", "", "")).questions
    check(questions, EvaluationSettings(metric="exact_match", more_metrics=["contains"]))
    with pytest.raises(DataError, match="rows:1"):
        check(questions, EvaluationSettings(metric="numeric"))
    with pytest.raises(ConfigError, match="evaluation.metric: there is no file .*nowhere_to_be_found.py"):
        check(questions, EvaluationSettings(metric="nowhere_to_be_found.py:score"))


def test_nothing_asked_is_no_task() -> None:
    assert judge(answered(), EvaluationSettings(metric="normalized_match")) == (None, [])


class _Model:
    """Says the loss it is told to: one logit stands out by `margin` for every right token."""

    device = "cpu"

    def __init__(self) -> None:
        self.margin = 3.0

    def disable_adapter(self) -> Any:
        from contextlib import contextmanager

        @contextmanager
        def off() -> Any:
            self.margin = 1.0
            yield
            self.margin = 3.0

        return off()

    def __call__(self, input_ids: Any, **_: Any) -> Any:
        import torch

        logits = torch.zeros(1, input_ids.shape[1], 11)
        logits[0, :-1].scatter_(1, input_ids[0, 1:, None], self.margin)
        return type("Out", (), {"logits": logits})


def test_the_loss_is_weighted_by_tokens_and_has_an_interval() -> None:
    examples = [{"input_ids": [1] * n, "labels": [-100] + [1] * (n - 1)} for n in (3, 9, 5, 7)]
    found, losses = measure_loss(_Model(), examples)
    assert found is not None
    assert found["tuned"] < found["base"]
    assert found["difference"] == pytest.approx(found["tuned"] - found["base"])
    assert found["ci95"] == pytest.approx([found["difference"]] * 2), "every token changed by the same"
    assert [loss.tokens for loss in losses.base] == [2, 8, 4, 6]
    assert measure_loss(_Model(), [])[0] is None
    alone = measure_loss(_Model(), examples[:1])[0]
    assert alone is not None and alone["ci95"] is None, "one row has no spread"


def test_the_interval_of_the_loss_is_that_of_all_other_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = [12.0, 30.0, 7.0, 41.0, 15.0, 9.0], [11.0, 24.0, 8.0, 30.0, 15.5, 6.0]
    tokens = [4, 9, 2, 11, 5, 3]
    losses = Both(*([Loss(*loss) for loss in zip(totals, tokens, strict=True)] for totals in (before, after)))
    monkeypatch.setattr("qdora_fast.evaluation.task.of_both", lambda *_: losses)
    found, _ = measure_loss(None, [{}] * 6)
    assert found is not None
    assert tuple(found["ci95"]) == bootstrap_ci(np.subtract(after, before), tokens)


def read(*losses: tuple[float, float, int], same_prompt: bool = False) -> Read:
    """(base, tuned, tokens) of each row, in nats."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": "q" if same_prompt else f"q{i}"},
                {"role": "assistant", "content": "a"},
            ],
            "meta": {"source": f"r:{i}", "hash": str(i)},
        }
        for i in range(len(losses))
    ]
    return Read(rows, Both(*([Loss(row[side], row[2]) for row in losses] for side in (0, 1))))


def test_long_answers_are_compared_by_how_likely_they_became() -> None:
    settings = EvaluationSettings(metric="likelihood", more_metrics=["chrf"])
    rows = read(*[(20.0 + i, 15.0 + i, 10) for i in range(9)], (10.0, 12.0, 10), (0.0, 0.0, 0))
    said = answered(("a long reference", "another one", "a long reference"))
    task, right = judge(said, settings, rows)
    assert task is not None and right == []
    assert (task["metric"], task["n"], task["likelier"], task["less_likely"]) == ("likelihood", 10, 9, 1)
    assert task["difference"] == pytest.approx(-0.43) and task["ci95"][1] < 0
    assert task["verdict"] == "better"
    assert "likelier on 9 of 10 rows" in task["words"] and "a fall of 0.43" in task["words"]
    assert task["more"]["chrf"]["tuned"] == pytest.approx(1) and task["more"]["chrf"]["n"] == 1
    assert task["answered"] == 1


def test_rows_of_plain_text_have_a_likelihood_without_a_question() -> None:
    task, _ = judge(answered(), EvaluationSettings(metric="likelihood"), read(*[(9.0, 9.5, 3)] * 8))
    assert task is not None and (task["n"], task["verdict"], task["answered"]) == (8, "worse", 0)


def test_answers_to_one_prompt_are_one_piece_of_evidence() -> None:
    better = [(20.0, 15.0 - 0.01 * i, 10) for i in range(12)]
    settings = EvaluationSettings(metric="likelihood")
    apart, together = (judge(answered(), settings, read(*better, same_prompt=same))[0] for same in (False, True))
    assert apart is not None and apart["verdict"] == "better"
    assert together is not None and together["verdict"] == "no evidence"


def test_one_long_row_alone_makes_no_model_better() -> None:
    rows = [(5000.0, 3000.0, 2000), *[(20.0, 19.9, 10), (20.0, 20.1, 10)] * 5]
    task, _ = judge(answered(), EvaluationSettings(metric="likelihood"), read(*rows))
    assert task is not None and task["difference"] < -0.5
    assert task["verdict"] == "no evidence"


def test_rounding_makes_nothing_likelier() -> None:
    noise = [(20.0, 20.0 - 1e-5, 10) for _ in range(12)]
    task, _ = judge(answered(), EvaluationSettings(metric="likelihood"), read(*noise))
    assert task is not None
    assert (task["verdict"], task["likelier"], task["less_likely"]) == ("no evidence", 0, 0)
