"""Base and tuned model answer the same questions; what is counted is what is said."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from loaded_models import loaded_base
from thinking_templates import THINKING

from qdora_fast.data import choose_template
from qdora_fast.evaluation import heldout
from qdora_fast.evaluation.generation import encode, generate
from qdora_fast.evaluation.heldout import Loss, choose_rows, make_questions, mean_loss, of_both, row_losses
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
    prompts = encode(base.tokenizer, ["What?", "Where is it then?"])
    done: list[tuple[str, int, int]] = []

    def ask(side: str) -> Any:
        def on_answer(count: int, tokens: int) -> None:
            done.append((side, count, tokens))

        return generate(model, base.tokenizer, prompts, 4, 1, base.stop_ids, on_answer)

    said = of_both(model, ask)
    assert said.base == said.tuned
    for side in ("base", "tuned"):
        assert sum(count for which, count, _ in done if which == side) == len(prompts)
        assert sum(tokens for which, _, tokens in done if which == side) == sum(reply.tokens for reply in said.base)
    rendered = [{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}]
    losses = of_both(model, lambda _: row_losses(model, rendered))
    assert losses.base[0].mean == pytest.approx(losses.tuned[0].mean, rel=1e-5)


def test_the_order_and_size_of_batches_change_no_answer(loaded) -> None:
    base, model = loaded
    prompts = encode(base.tokenizer, [f"{'x ' * n}answer:" for n in (9, 1, 5, 3)])
    alone = generate(model, base.tokenizer, prompts, 40, 1, base.stop_ids)
    assert generate(model, base.tokenizer, prompts, 40, 4, base.stop_ids) == alone
    assert base.tokenizer.padding_side == "right"
    base.tokenizer.pad_token_id = 7  # what stands where nothing should look
    for expected in ([1, 30, 2, 9], [100] * 4, [13] * 4):
        assert generate(model, base.tokenizer, prompts, 40, 3, base.stop_ids, expected=expected) == alone


def test_an_answer_ends_at_its_first_stop_token_in_whichever_pass_it_comes(loaded) -> None:
    base, model = loaded
    prompts = encode(base.tokenizer, [f"{'y ' * n}:" for n in (2, 7, 4)])
    never = frozenset({10**6})
    (whole,) = generate(model, base.tokenizer, prompts[:1], 40, 1, never)
    assert (whole.tokens, whole.finished) == (40, False)
    ids = model.generate(input_ids=torch.tensor(prompts[:1]), max_new_tokens=40, do_sample=False, eos_token_id=10**6)
    written = ids[0, len(prompts[0]) :].tolist()
    for late in (written[3], written[-1]):
        stop = frozenset({late})
        alone = [generate(model, base.tokenizer, [prompt], 40, 1, stop)[0] for prompt in prompts]
        assert (alone[0].tokens, alone[0].finished) == (written.index(late), True)
        assert generate(model, base.tokenizer, prompts, 40, 3, stop, expected=[1, 5, 30]) == alone


def test_an_answer_that_runs_into_the_limit_is_not_finished(loaded) -> None:
    base, model = loaded
    x = encode(base.tokenizer, ["x"])
    (reply,) = generate(model, base.tokenizer, x, 3, 1, frozenset({10**6}))
    assert (reply.tokens, reply.finished) == (3, False)
    with torch.no_grad():
        first = int(model(**base.tokenizer("x", return_tensors="pt", add_special_tokens=False)).logits[0, -1].argmax())
    (reply,) = generate(model, base.tokenizer, x, 3, 1, frozenset({first}))
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


def test_rows_read_together_have_the_losses_of_rows_read_alone(loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = loaded
    generator = torch.Generator().manual_seed(1)
    rows: list[dict[str, list[int]]] = []
    for length in (2, 31, 5, 18, 3, 60, 7, 7):
        ids = torch.randint(4, 200, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :]})
    rows[2]["labels"] = [-100] * 5  # nothing to predict
    alone = [row_losses(model, [row])[0] for row in rows]
    for most in (64, 1024):
        monkeypatch.setattr(heldout, "BATCH_TOKENS", most)
        read: list[int] = []
        shapes: list[tuple[int, int]] = []
        with reading(model, shapes):
            together = row_losses(model, rows, on_row=lambda count, _: read.append(count))  # noqa: B023
        assert [loss.tokens for loss in together] == [loss.tokens for loss in alone]
        assert [loss.total for loss in together] == pytest.approx([loss.total for loss in alone], rel=1e-5)
        assert sum(read) == len(rows)
        assert all(rows * longest <= most for rows, longest in shapes) and len(shapes) < 2 * len(rows)


@contextmanager
def reading(model: Any, shapes: list[tuple[int, int]]) -> Any:
    """Notes the shape of what the model's backbone reads."""
    backbone = model.get_base_model().base_model

    def note(_module: Any, _inputs: Any, given: Any) -> None:
        shapes.append(tuple(given["input_ids"].shape))

    handle = backbone.register_forward_pre_hook(lambda module, args, given: note(module, args, given), with_kwargs=True)
    yield
    handle.remove()


def test_each_row_is_asked_in_its_own_mode_and_its_reasoning_is_no_part_of_the_reference(loaded) -> None:
    base, _ = loaded
    base.tokenizer.chat_template = THINKING["hybrid"]
    thought = _row("a?", "four")
    thought["messages"][1]["reasoning_content"] = "two and two"
    rows = [thought, _row("b?", "<think>\ntwo and two\n</think>\n\nfour"), _row("c?", "four")]

    def asked(setting: Any) -> list[tuple[str, str]]:
        made = make_questions(rows, base.tokenizer, max_length=400, thinking=setting)
        return [(each.prompt.rpartition("assistant\n")[2], each.reference) for each in made]

    assert asked("auto") == [("", "four"), ("", "four"), ("<think>\n\n</think>\n\n", "four")]
    assert asked("off") == [("<think>\n\n</think>\n\n", "four")] * 3
    assert asked("as_is") == [("", "four")] * 3
