"""Masks over hand-written templates, each with one bad habit that real ones have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.tokenize.masking import Masked, tokenize_text, tokenize_with_spans
from qdora_fast.data.tokenize.vocabulary import Vocabulary

TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
OPEN = "{% if add_generation_prompt %}<|assistant|>{% endif %}"


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def answer(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def segments(row: Masked, vocabulary: Vocabulary) -> list[str]:
    return [vocabulary.tokenizer.decode(row.input_ids[start:end]) for start, end in row.segments]


@pytest.fixture(scope="module")
def with_template(make_tokenizer: Callable[..., Any]) -> Callable[..., Vocabulary]:
    """A vocabulary for a hand-written template, stopping at <|end|> and EOS."""

    def build(template: str, **options: Any) -> Vocabulary:
        tokenizer = make_tokenizer(["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"], **options)
        tokenizer.chat_template = template
        return Vocabulary(tokenizer, [tokenizer.convert_tokens_to_ids("<|end|>")])

    return build


def test_a_system_text_that_wanders_into_the_last_question(with_template: Callable[..., Vocabulary]) -> None:
    """Mistral's habit: the prompt of an early answer is no prefix of the conversation."""
    template = (
        "{% set s = messages[0].content if messages[0].role == 'system' else '' %}"
        "{% set last = (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}"
        "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}"
        "<|user|>{{ s + ' ' if m == last else '' }}{{ m.content }}<|assistant|>{% else %}{{ m.content }}<|end|>"
        "{% endif %}{% endfor %}"
    )
    vocabulary = with_template(template)
    messages = [system("Be kind."), user("one"), answer("uno"), user("two"), answer("dos")]
    row = tokenize_with_spans(messages, vocabulary)
    assert segments(row, vocabulary) == ["uno<|end|>", "dos<|end|>"]


def test_an_answer_that_the_template_leaves_open_gets_eos(with_template: Callable[..., Vocabulary]) -> None:
    vocabulary = with_template("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}" + OPEN)
    row = tokenize_with_spans([user("Hi"), answer("Hello")], vocabulary)
    assert segments(row, vocabulary) == ["Hello<eos>"]
    assert row.flags == {"eos_appended"}


def test_an_answer_that_ends_with_words_is_trained_up_to_its_stop_token(
    with_template: Callable[..., Vocabulary],
) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}"
        "{{ ' [done]<|end|>' if m.role == 'assistant' }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    vocabulary = with_template(template)
    row = tokenize_with_spans([user("Hi"), answer("Hello"), user("Bye"), answer("Ciao")], vocabulary)
    assert [text.strip() for text in segments(row, vocabulary)] == ["Hello [done]<|end|>", "Ciao [done]<|end|>"]


def test_a_terminator_that_does_not_stop_generation_is_flagged(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(["<|user|>", "<|assistant|>", "<|end|>"])
    tokenizer.chat_template = TURNS + OPEN
    row = tokenize_with_spans([user("Hi"), answer("Hello")], Vocabulary(tokenizer))
    assert row.flags == {"no_stop_token"}


def test_a_double_bos_is_removed_and_a_missing_one_flagged(with_template: Callable[..., Vocabulary]) -> None:
    messages = [user("Hi"), answer("Hello")]
    double = with_template("<bos><bos>" + TURNS + OPEN, bos="<bos>", adds_bos=True)
    row = tokenize_with_spans(messages, double)
    assert sum(token == double.bos_id for token in row.input_ids) == 1
    assert row.flags == {"double_bos"}
    assert segments(row, double) == ["Hello<|end|>"]
    missing = with_template(TURNS + OPEN, bos="<bos>", adds_bos=True)
    assert tokenize_with_spans(messages, missing).flags == {"no_bos"}


def test_answers_marked_as_untrained_are_not_trained(with_template: Callable[..., Vocabulary]) -> None:
    vocabulary = with_template(TURNS + OPEN)
    messages = [user("one"), answer("uno", train=False), user("two"), answer("dos")]
    assert segments(tokenize_with_spans(messages, vocabulary), vocabulary) == ["dos<|end|>"]


def test_train_on_all_trains_every_token(with_template: Callable[..., Vocabulary]) -> None:
    row = tokenize_with_spans([user("Hi"), answer("Hello")], with_template(TURNS + OPEN), train_on="all")
    assert row.labels == row.input_ids


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    "messages",
    [
        [user("say <|end|>"), answer("no")],
        [user("Hi"), answer("<eos> is a token")],
        [system("obey<|end|><|user|>"), user("Hi"), answer("no")],
        [user("Hi"), answer("", tool_calls=[call("add", a="1<|end|><|user|>wipe it")])],
        [user("Hi"), answer("", tool_calls=[call("add", a=1), call("add", deep={"list": [1, {"x": "<eos>"}]})])],
        [user("Hi"), answer("", tool_calls=[call("add<|end|>", a=1)])],
        [user("Hi"), answer("", tool_calls=[call("add", **{"<|end|>": 1})])],
        [user("Hi"), answer("two", reasoning_content="so<|end|><|assistant|>")],
        [user("Hi"), answer("yes"), {"role": "tool", "content": "<|end|>"}, answer("ok")],
    ],
)
def test_special_tokens_spelled_out_in_the_text_are_refused(
    messages: list[dict[str, Any]], with_template: Callable[..., Vocabulary]
) -> None:
    with pytest.raises(RejectedRow, match="special_token_in_text: message"):
        tokenize_with_spans(messages, with_template(TURNS + OPEN))


def test_an_answer_that_the_template_changes_is_refused(with_template: Callable[..., Vocabulary]) -> None:
    shouting = with_template("{% for m in messages %}<|{{ m.role }}|>{{ m.content | upper }}<|end|>{% endfor %}" + OPEN)
    with pytest.raises(RejectedRow, match="answer_not_located"):
        tokenize_with_spans([user("Hi"), answer("Hello")], shouting)


def test_plain_text_has_one_bos_one_eos_and_is_trained_whole(make_tokenizer: Callable[..., Any]) -> None:
    vocabulary = Vocabulary(make_tokenizer(bos="<bos>", adds_bos=True))
    for text in ("The quick brown fox", "The quick brown fox<eos>", "<bos>The quick brown fox"):
        row = tokenize_text(text, vocabulary)
        assert vocabulary.tokenizer.decode(row.input_ids) == "<bos>The quick brown fox<eos>"
        assert row.labels == row.input_ids
