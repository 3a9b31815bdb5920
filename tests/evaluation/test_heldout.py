"""Base and tuned model answer the same questions; what is counted is what is said."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from loaded_models import loaded_base

from qdora_fast.data import choose_template
from qdora_fast.evaluation.heldout import Loss, choose_rows, generate, make_questions, mean_loss, of_both, row_losses
from qdora_fast.models.loading import attach


@pytest.fixture
def loaded(tiny_config) -> Any:
    config = tiny_config()
    base = loaded_base(config)
    choose_template(base.tokenizer, "auto")
    return base, attach(base, config.adapter, config.train).eval()


def _row(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)], "tools": None}


def test_the_last_answer_is_asked_for_and_everything_before_is_the_prompt(loaded) -> None:
    base, _ = loaded
    (question,) = make_questions([_row("a?", "b", "c?", " d ")], base.tokenizer, max_length=100)
    assert (question.shown, question.reference) == ("c?", "d")
    assert all(text in question.prompt for text in ("a?", "b", "c?"))
    assert question.prompt.rstrip().endswith("### Response:")


def test_rows_without_a_question_and_too_long_ones_are_passed_over(loaded) -> None:
    base, _ = loaded
    rows = [{"messages": [], "text": "plain"}, _row("word " * 200, "a"), _row("short", "a"), _row("more", "b")]
    assert [q.shown for q in make_questions(rows, base.tokenizer, max_length=100)] == ["short", "more"]


def test_a_row_whose_prompt_the_template_refuses_is_passed_over_and_told(loaded) -> None:
    base, _ = loaded
    refusing = (
        "{{ raise_exception('it must end with an answer') if messages[-1].role != 'assistant' and messages[1:] }}"
    )
    base.tokenizer.chat_template = refusing + base.tokenizer.chat_template
    rows = [_row("a?", "b"), _row("a?", "b", "c?", "d") | {"meta": {"source": "rows.jsonl:2"}}]
    told: list[str] = []
    assert [q.shown for q in make_questions(rows, base.tokenizer, max_length=100, on_refused=told.append)] == ["a?"]
    assert told == ["rows.jsonl:2: it must end with an answer"]


def test_a_date_in_the_template_is_that_of_the_run(loaded) -> None:
    base, _ = loaded
    base.tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + base.tokenizer.chat_template
    (question,) = make_questions([_row("a?", "b")], base.tokenizer, max_length=100, date="2001-02-03")
    assert question.prompt.startswith("03 Feb 2001")


def test_which_rows_are_asked_depends_on_what_they_say_alone() -> None:
    rows: list[dict[str, Any]] = [{"meta": {"hash": f"{(7 * i) % 101:03}"}} for i in range(100)]
    chosen = {rows[i]["meta"]["hash"] for i in choose_rows(rows, 20)}
    assert len(chosen) == 20
    turned = rows[::-1]
    assert {turned[i]["meta"]["hash"] for i in choose_rows(turned, 20)} == chosen
    assert choose_rows(rows, 20) == sorted(choose_rows(rows, 20))
    assert choose_rows(rows, 1000) == list(range(100))


def test_an_untrained_adapter_is_its_base(loaded) -> None:
    base, model = loaded
    prompts = ["What?", "Where is it then?"]
    done: list[int] = []
    said = of_both(model, lambda: generate(model, base.tokenizer, prompts, 4, 1, base.stop_ids, done.append))
    assert said.base == said.tuned
    assert sum(done) == 2 * len(prompts)
    rendered = [{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}]
    losses = of_both(model, lambda: row_losses(model, rendered))
    assert losses.base[0].mean == pytest.approx(losses.tuned[0].mean, rel=1e-5)


def test_the_order_and_size_of_batches_change_no_answer(loaded) -> None:
    base, model = loaded
    prompts = [f"{'x ' * n}answer:" for n in (9, 1, 5, 3)]
    alone = generate(model, base.tokenizer, prompts, 6, 1, base.stop_ids)
    together = generate(model, base.tokenizer, prompts, 6, 4, base.stop_ids)
    assert alone == together
    assert base.tokenizer.padding_side == "right"  # left for the time of generating only


def test_an_answer_that_runs_into_the_limit_is_not_finished(loaded) -> None:
    base, model = loaded
    (reply,) = generate(model, base.tokenizer, ["x"], 3, 1, frozenset({10**6}))
    assert (reply.tokens, reply.finished) == (3, False)
    with torch.no_grad():
        first = int(model(**base.tokenizer("x", return_tensors="pt", add_special_tokens=False)).logits[0, -1].argmax())
    (reply,) = generate(model, base.tokenizer, ["x"], 3, 1, frozenset({first}))
    assert (reply.text, reply.tokens, reply.finished) == ("", 0, True)


def test_the_loss_is_the_mean_over_trained_tokens(loaded) -> None:
    _, model = loaded
    ids = [5, 6, 7, 8, 9]
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    expected = -(log_probs[2, 8] + log_probs[3, 9])
    (loss,) = row_losses(model, [{"input_ids": ids, "labels": [-100, -100, -100, 8, 9]}])
    assert loss.tokens == 2
    assert loss.total == pytest.approx(float(expected), rel=1e-4)
    assert mean_loss([loss, Loss(30.0, 8)]) == pytest.approx((loss.total + 30) / 10)
    assert math.isnan(mean_loss([]))
