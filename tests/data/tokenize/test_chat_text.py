"""The door to a chat template: what it is given, and what it may not do."""

from __future__ import annotations

from typing import Any

import pytest

from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.tokenize.chat_text import as_taken, asks_for_clock, check_template, render_chat, templates_of
from qdora_fast.system.errors import ConfigError

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": "zwei", "b": 2}}}
CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "Add"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
]
PRINTED = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}[%s]{% endfor %}{% endfor %}"
THOUGHT: list[dict[str, Any]] = [
    {"role": "user", "content": "Add"},
    {"role": "assistant", "content": "4", "reasoning_content": "two twice"},
]


def having(tokenizer: Any, template: Any) -> Any:
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("printing", "expected"),
    [
        ("{{ c.function.arguments | tojson }}", '{"a": "zwei", "b": 2}'),
        ("{{ c.function.arguments }}", '{"a": "zwei", "b": 2}'),
        ("{{ '```' + c.function.arguments + '```' }}", '```{"a": "zwei", "b": 2}```'),
        ("{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}", '"zwei"'),
        ("{% for key, value in c.function.arguments | items %}{{ key }}={{ value }};{% endfor %}", "a=zwei;b=2;"),
        ("{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}", '"arguments": {"a": "zwei"'),
    ],
)
def test_arguments_are_given_as_the_template_takes_them(printing: str, expected: str, base_tokenizer: Any) -> None:
    text = render_chat(having(base_tokenizer, PRINTED.replace("%s", printing)), CALLED)
    assert expected in text
    assert "\\" not in text and "'" not in text, "quoted twice, or as Python prints it"


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_given_under_the_name_that_the_template_knows(key: str, base_tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{% if m." + key + " %}<{{ m." + key + " }}>{% endif %}{{ m.content }}{% endfor %}"
    )
    tokenizer = having(base_tokenizer, template)
    assert render_chat(tokenizer, THOUGHT) == "Add<two twice>4"
    once = as_taken(tokenizer, THOUGHT)
    assert as_taken(tokenizer, once) == once
    assert "reasoning_content" in THOUGHT[1], "the row itself stays as it is"


def test_ids_of_calls_are_given_as_mistral_wants_them(base_tokenizer: Any) -> None:
    strict = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{% if not c.id is defined or c.id | length != 9 %}{{ raise_exception('nine!') }}{% endif %}[{{ c.id }}]"
        "{% endfor %}{% if m.role == 'tool' %}({{ m.tool_call_id }}){% endif %}{% endfor %}"
    )
    tokenizer = having(base_tokenizer, strict)
    result = {"role": "tool", "content": "4"}
    for ids in ({}, {"id": "call_0123456789abcdef"}):
        called = [CALLED[0], CALLED[1] | {"tool_calls": [CALL | ids]}]
        answered = [result | ({"tool_call_id": ids["id"]} if ids else {})]
        text = render_chat(tokenizer, [*called, *answered])
        assert text[4:13] == text[-10:-1] and text[4:13].isalnum()
        assert text.startswith(render_chat(tokenizer, called)), "the beginning stays what it was"
    own = [CALLED[0], CALLED[1] | {"tool_calls": [CALL | {"id": "abc123XYZ"}]}]
    assert render_chat(tokenizer, own) == "Add[abc123XYZ]"


def test_a_tokenizer_may_have_lists_of_special_tokens(base_tokenizer: Any) -> None:
    base_tokenizer.add_special_tokens({"additional_special_tokens": ["<one>", "<two>"]})
    assert render_chat(having(base_tokenizer, "{{ eos_token }}{{ messages[0].content }}"), CALLED) == "<eos>Add"


def test_the_clock_is_that_of_the_date_given(base_tokenizer: Any) -> None:
    tokenizer = having(base_tokenizer, "{{ strftime_now('%d %b %Y %H:%M') }}{{ messages[0].content }}")
    assert asks_for_clock(tokenizer)
    assert render_chat(tokenizer, CALLED[:1], date="2001-02-03") == "03 Feb 2001 00:00Add"
    assert "2001" not in render_chat(tokenizer, CALLED[:1])
    assert not asks_for_clock(having(base_tokenizer, "{{ messages[0].content }}"))
    assert asks_for_clock(having(base_tokenizer, {"default": "a", "tool_use": "{{ strftime_now('%Y') }}"}))


@pytest.mark.parametrize("wrong", ["{{ nothing() }}", "{{ 1 // 0 }}", "{{ messages[0].content + 1 }}", "{{ [][3].x }}"])
def test_what_a_template_raises_rejects_the_row_in_its_words(wrong: str, base_tokenizer: Any) -> None:
    with pytest.raises(RejectedRow, match="template_error: .+"):
        render_chat(having(base_tokenizer, wrong), CALLED[:1])


@pytest.mark.parametrize("wrong", ["{{ ['a', 'b'] | random }}", "{% if false %}{{ lipsum() }}{% endif %}"])
def test_a_template_that_is_never_the_same_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="mine prints something else each time"):
        check_template(wrong, "mine")


def test_of_several_templates_transformers_takes_the_one_for_tools(base_tokenizer: Any) -> None:
    tokenizer = having(base_tokenizer, {"default": "plain", "tool_use": "with tools", "rag": "unused"})
    assert list(templates_of(tokenizer)) == ["default", "rag", "tool_use"]
    tools = [{"type": "function", "function": {"name": "add"}}]
    assert render_chat(tokenizer, CALLED, tools) == "with tools"
    assert render_chat(tokenizer, CALLED, []) == render_chat(tokenizer, CALLED, None) == "plain"
