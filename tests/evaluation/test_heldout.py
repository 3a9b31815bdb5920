"""Base and tuned model answer the same questions; what is counted is what is said."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from qdora_fast.data import choose_template
from qdora_fast.evaluation.heldout import Question, compare, generate, make_questions, mean_loss
from qdora_fast.model import attach, load_base


@pytest.fixture
def loaded(tiny_config) -> Any:
    config = tiny_config()
    base = load_base(config.model.name, config, precision="fp32")
    choose_template(base.tokenizer, "auto")
    return base, attach(base, config.adapter, config.train).eval()


def _row(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)], "tools": None}


def test_the_last_answer_is_asked_for_and_everything_before_is_the_prompt(loaded) -> None:
    base, _ = loaded
    (question,) = make_questions([_row("a?", "b", "c?", " d ")], base.tokenizer, most=5, max_length=100)
    assert (question.shown, question.reference) == ("c?", "d")
    assert all(text in question.prompt for text in ("a?", "b", "c?"))
    assert question.prompt.rstrip().endswith("### Response:")


def test_rows_without_a_question_and_too_long_ones_are_passed_over(loaded) -> None:
    base, _ = loaded
    rows = [{"messages": [], "text": "plain"}, _row("word " * 200, "a"), _row("short", "a"), _row("more", "b")]
    assert [q.shown for q in make_questions(rows, base.tokenizer, most=1, max_length=100)] == ["short"]


def test_an_untrained_adapter_is_its_base(loaded) -> None:
    base, model = loaded
    questions = make_questions(
        [_row("What?", "This."), _row("Where is it then?", "There.")], base.tokenizer, most=9, max_length=100
    )
    rendered = [{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}]
    done: list[int] = []
    result = compare(
        model, base.tokenizer, questions, rendered, max_new_tokens=4, batch_size=1, stop_ids=base.stop_ids,
        on_answer=done.append,
    )  # fmt: skip
    assert all(answer.base == answer.tuned for answer in result.answers)
    assert result.base_loss == pytest.approx(result.tuned_loss, rel=1e-5)
    assert sum(done) == 2 * len(questions)


def test_the_order_and_size_of_batches_change_no_answer(loaded) -> None:
    base, model = loaded
    questions = [Question(f"{'x ' * n}answer:", "", "") for n in (9, 1, 5, 3)]
    alone = generate(model, base.tokenizer, questions, 6, 1, base.stop_ids)
    together = generate(model, base.tokenizer, questions, 6, 4, base.stop_ids)
    assert alone == together
    assert base.tokenizer.padding_side == "right"  # left for the time of generating only


def test_the_loss_is_the_mean_over_trained_tokens(loaded) -> None:
    _, model = loaded
    ids = [5, 6, 7, 8, 9]
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    expected = -(log_probs[2, 8] + log_probs[3, 9]) / 2
    assert mean_loss(model, [{"input_ids": ids, "labels": [-100, -100, -100, 8, 9]}]) == pytest.approx(
        float(expected), rel=1e-4
    )
    assert math.isnan(mean_loss(model, []))


def test_accuracy_counts_equal_answers(loaded) -> None:
    base, model = loaded
    prompts = [Question("one", "", ""), Question("two", "", "")]
    said = generate(model, base.tokenizer, prompts, 3, 2, base.stop_ids)
    questions = [Question("one", "q", said[0]), Question("two", "q", said[1] + " no")]
    result = compare(model, base.tokenizer, questions, [], max_new_tokens=3, batch_size=2, stop_ids=base.stop_ids)
    assert result.tuned_accuracy == 0.5
    assert result.figures()["n"] == 2
