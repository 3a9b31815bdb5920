"""What a template does not print is named, and what it prints in its own way is not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdora_fast.data.tokenize.left_out import DATED, EARLIER, LOSSES, Accountant, loss_sentence
from qdora_fast.data.tokenize.vocabulary import Vocabulary

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "What is it?"}
SAID = {"role": "assistant", "content": "It is this."}
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {"where": "here"}}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "nothing", "name": "look", "tool_call_id": "1"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Looks.",
            "parameters": {"type": "object", "properties": {"where": {"type": "string"}}},
        },
    }
]
EACH = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
TALKING = "{% for m in messages if m.role in ('user', 'assistant') %}<{{ m.role }}>{{ m.content }}{% endfor %}"
CALLING = EACH.replace(
    "{% endfor %}", "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{% endfor %}"
)
FOLDED = (
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}"
    "{% for m in messages %}{{ first if loop.first }}{{ m.content | trim }}{% endfor %}"
)
LAST_THOUGHT = (
    "{% for m in messages %}"
    "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content.split('</think>')[-1] if not loop.last else m.content }}{% endfor %}"
)


def thinking(**more: Any) -> dict[str, Any]:
    return SAID | {"reasoning_content": "because"} | more


def left_out(tokenizer: Any, template: str, messages: Any, tools: Any = None, date: str | None = None) -> set[str]:
    tokenizer.chat_template = template
    row: Any = {"messages": list(messages), "tools": tools, "meta": {"source": "x:1"}}
    return set(Accountant(Vocabulary(tokenizer, date=date)).left_out(row))


@pytest.mark.parametrize(
    ("template", "messages", "tools", "expected"),
    [
        (TALKING, [SYSTEM, ASKED, SAID], None, {"system"}),
        (TALKING, [ASKED, CALLED, RESULT, SAID], None, {"tool_call", "tool_result"}),
        (EACH, [ASKED, SAID], TOOLS, {"tools"}),
        (EACH, [ASKED, thinking()], None, {"reasoning"}),
        (EACH, [ASKED, thinking(), ASKED, thinking()], None, {"reasoning"}),
        (EACH.replace("m.content", "m.content.split('</think>')[-1]"), [ASKED, SAID | {"content": "<think>a</think>b"}],
         None, {"thinking"}),
        (EACH, [ASKED | {"name": "Ann"}, SAID], None, {"name"}),
        (CALLING.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]"),
         [ASKED, CALLED | {"tool_calls": [CALL, CALL]}], None, {"tool_call"}),
        (CALLING.replace("c.function |", "c.function.name |"), [ASKED, CALLED], None, {"tool_arguments"}),
        (CALLING.replace("{{ m.content }}", "{{ m.content if not m.tool_calls }}"),
         [ASKED, CALLED | {"content": "So."}], None, {"answer"}),
        ("{{ tools[0].function.name }}" + EACH, [ASKED, SAID], TOOLS, {"tool_descriptions", "tool_parameters"}),
        (EACH.replace("m.content", "m.instruction or m.content"), [ASKED | {"instruction": "a", "input": "b"}, SAID],
         None, {"input"}),
    ],
)  # fmt: skip
def test_what_is_not_printed_is_named(
    template: str, messages: Any, tools: Any, expected: set[str], base_tokenizer: Any
) -> None:
    assert left_out(base_tokenizer, template, messages, tools) == expected
    assert expected <= LOSSES.keys()


@pytest.mark.parametrize(
    ("template", "messages", "tools"),
    [
        (FOLDED, [SYSTEM, ASKED | {"content": "  What? \n"}, SAID], None),
        ("{{ tools | tojson(indent=2) }}" + CALLING, [ASKED, CALLED, RESULT, SAID], TOOLS),
        ("{{ tools | string | replace(' ', '') }}" + CALLING, [ASKED, CALLED, RESULT, SAID], TOOLS),
        (EACH.replace("m.content", "m.content | upper"), [SYSTEM, ASKED, SAID], None),
        (EACH.replace("m.content", "m.content | reverse"), [SYSTEM, ASKED, SAID], None),
        (EACH.replace("m.content", "(m.content | tojson)"), [SYSTEM, ASKED, SAID], None),
        (LAST_THOUGHT, [ASKED, thinking()], None),
        (EACH, [ASKED | {"name": " ", "reasoning_content": ""}, SAID | {"name": None}], None),
        (EACH, [ASKED | {"instruction": None, "input": None}, SAID], None),
        (CALLING, [ASKED, CALLED | {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}],
         None),
    ],
)  # fmt: skip
def test_what_is_printed_in_another_way_is_no_loss(
    template: str, messages: Any, tools: Any, base_tokenizer: Any
) -> None:
    assert left_out(base_tokenizer, template, messages, tools) == set()


def test_reasoning_left_out_of_earlier_turns_is_no_loss_where_it_is_printed_in_the_last(base_tokenizer: Any) -> None:
    inline = SAID | {"content": "<think>a</think>b"}
    assert left_out(base_tokenizer, LAST_THOUGHT, [ASKED, thinking(), ASKED, thinking()]) == {EARLIER}
    assert left_out(base_tokenizer, LAST_THOUGHT, [ASKED, inline, ASKED, inline]) == {EARLIER}


def test_a_date_is_told_where_this_row_has_it(base_tokenizer: Any) -> None:
    dated = "{% if messages[0].role != 'system' %}{{ strftime_now('%Y') }}{% endif %}" + EACH
    assert left_out(base_tokenizer, dated, [ASKED, SAID], date="2026-11-30") == {DATED}
    assert left_out(base_tokenizer, dated, [SYSTEM, ASKED, SAID], date="2026-11-30") == set()


words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=50)
@given(texts=st.lists(words, min_size=3, max_size=3), prints=st.sampled_from([EACH, TALKING, FOLDED]))
def test_the_answer_depends_on_the_shape_alone(texts: list[str], prints: str, shared: Any) -> None:
    """Words that the template prints by itself, or that another message has, too, change nothing."""
    messages = [each | {"content": text} for each, text in zip((SYSTEM, ASKED, SAID), texts, strict=True)]
    assert left_out(shared, prints, messages) == ({"system"} if prints is TALKING else set())


@pytest.fixture(scope="module")
def shared(make_tokenizer: Any) -> Any:
    return make_tokenizer()


def test_a_loss_says_how_many_where_and_what_to_do() -> None:
    said = loss_sentence("system", 1200, 4000, ["a.jsonl:1", "a.jsonl:7"])
    assert said.startswith("1,200 of 4,000 rows have a system message that the chat template does not print: ")
    assert "data.template" in said and said.endswith("first at a.jsonl:1, a.jsonl:7")
