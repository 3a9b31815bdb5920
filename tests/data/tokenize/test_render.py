from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from plain_rendering import render

from qdora_fast.data import choose_template
from qdora_fast.data.read.messages import Row
from qdora_fast.data.tokenize.masking import IGNORED
from qdora_fast.data.tokenize.render import Renderer, Rendering, TooLong
from qdora_fast.system.errors import DataError


def row(number: int, question: str = "What is it?", answer: str = "Paris") -> Row:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "tools": None, "meta": {"source": f"rows:{number}", "row": number, "hash": ""}}


@pytest.fixture
def tokenizer(base_tokenizer: Any) -> Any:
    choose_template(base_tokenizer, "auto")
    return base_tokenizer


def test_examples_have_two_columns_and_only_the_answer_is_learned(tokenizer: Any) -> None:
    rendered = render([row(1), row(2, answer="Berlin")], tokenizer, max_length=512)
    answers = []
    for example in rendered.examples:
        assert set(example) == {"input_ids", "labels"}
        assert all(label in (IGNORED, token) for token, label in zip(*example.values(), strict=True))
        answers.append(tokenizer.decode([label for label in example["labels"] if label != IGNORED]))
    assert answers == ["Paris<eos>", "Berlin<eos>"]
    dataset = rendered.dataset()
    assert dataset.column_names == ["input_ids", "labels"]
    assert dataset[1] == rendered.examples[1]


def test_the_report_counts_what_is_there(tokenizer: Any) -> None:
    rendered = render([row(1), row(2, answer="Berlin")], tokenizer, max_length=512)
    report = rendered.report
    assert (report.rows_in, report.kept, report.dropped, report.truncated) == (2, 2, (), 0)
    lengths = [len(example["input_ids"]) for example in rendered.examples]
    assert (report.tokens, report.longest) == (sum(lengths), max(lengths))
    trained = sum(label != IGNORED for example in rendered.examples for label in example["labels"])
    assert report.trained_tokens == trained
    assert report.trained_share == trained / report.tokens
    assert report.previews[0].source == "rows:1"
    assert [piece for piece in report.previews[0].pieces if piece[1]] == [("Paris<eos>", True)]


def test_long_rows_are_dropped_or_cut_and_counted(tokenizer: Any) -> None:
    rows = [row(1), row(2, answer="word " * 300)]
    dropped = render(rows, tokenizer, max_length=200)
    assert [kept["meta"]["row"] for kept in dropped.rows] == [1]
    (reason,) = dropped.report.dropped
    assert (reason.reason, reason.count) == ("too_long", 1)
    assert reason.examples[0].startswith("rows:2, ")
    cut = render(rows, tokenizer, max_length=200, on_long="truncate")
    assert [len(example["input_ids"]) for example in cut.examples][1] == cut.report.longest == 200
    assert cut.report.truncated == 1
    assert cut.report.dropped == ()


@pytest.mark.parametrize("max_fraction", [1.0, 0.5])
def test_a_row_of_exactly_the_limit_is_kept_whole(tokenizer: Any, max_fraction: float) -> None:
    whole, _ = Renderer(Rendering(tokenizer, 512))(row(1))
    length = len(whole["input_ids"])
    exact = {"max_length": round(length / max_fraction), "max_fraction": max_fraction}
    assert Rendering(tokenizer, **exact).limit == length
    assert Renderer(Rendering(tokenizer, **exact))(row(1)) == (whole, frozenset())
    with pytest.raises(TooLong, match=f"{length} tokens of {length - 1}"):
        Renderer(Rendering(tokenizer, **{**exact, "max_length": exact["max_length"] - 1}))(row(1))
    assert Renderer(Rendering(tokenizer, length, on_long="truncate"))(row(1)) == (whole, frozenset())
    cut, flags = Renderer(Rendering(tokenizer, length - 1, on_long="truncate"))(row(1))
    assert cut == {name: values[:-1] for name, values in whole.items()} and flags == {"truncated"}


def test_a_row_whose_answer_is_cut_away_is_dropped(tokenizer: Any) -> None:
    rendered = render([row(1), row(2), row(3, question="why " * 300)], tokenizer, max_length=200, on_long="truncate")
    assert [(each.reason, each.count) for each in rendered.report.dropped] == [("no_trained_tokens", 1)]
    assert rendered.report.truncated == 0


def test_data_without_anything_to_train_on_is_refused_with_the_fix(tokenizer: Any) -> None:
    with pytest.raises(DataError) as caught:
        render([row(1), row(2)], tokenizer, max_length=20)
    message = str(caught.value)
    assert "2 of 2 rows cannot be trained on" in message
    assert "rows:1" in message
    assert "raise model.max_length (now 20)" in message
    assert "data.on_long: truncate" in message


def test_a_template_that_refuses_most_rows_is_an_error(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    rows = [row(number) for number in range(5)]
    for each in rows[:3]:
        each["messages"].insert(0, {"role": "system", "content": "Be brief."})
    with pytest.raises(DataError, match=r"3 x template_error[^\0]*no system role[^\0]*another data.template"):
        render(rows, tokenizer, max_length=512)
    assert render(rows[2:], tokenizer, max_length=512).report.kept == 2


def test_an_empty_side_stays_empty(tokenizer: Any) -> None:
    rendered = render([], tokenizer, max_length=512)
    assert rendered.examples == []
    assert rendered.report.trained_share == 0
    assert rendered.dataset().column_names == ["input_ids", "labels"]


def test_plain_text_rows_need_no_template(make_tokenizer: Callable[..., Any]) -> None:
    text: Row = {"messages": [], "tools": None, "text": "The quick fox", "meta": row(1)["meta"]}
    example = render([text], make_tokenizer(), max_length=64).examples[0]
    assert example["labels"] == example["input_ids"]


def test_a_missing_stop_token_is_reported(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(["<|end|>"])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert render([row(1)], tokenizer, max_length=64).report.flags == {"no_stop_token": 1}
    assert render([row(1)], tokenizer, max_length=64, stop_ids=[end]).report.flags == {}
