"""JSON is found wherever a model writes it, compared by its meaning, and never guessed at where it is broken."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdora_fast.evaluation.json_answers import calls_of, values_in

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(values)
def test_any_value_is_read_back_from_every_way_to_write_it(value: Any) -> None:
    wanted = values_in(json.dumps(value))
    assert len(wanted) == 1
    assert values_in(json.dumps(value, indent=2, ensure_ascii=False)) == wanted
    assert values_in(f"Here:\n```json\n{json.dumps(value)}\n```\nDone.") == wanted
    assert values_in(json.dumps([value, value])) != wanted


@given(st.dictionaries(st.text(), values), st.dictionaries(st.text(), values), st.text("abc .,:\n#<>/|"))
def test_objects_between_words_are_found_in_their_order(first: Any, second: Any, between: str) -> None:
    texts = [json.dumps(first), json.dumps(second)]
    assert values_in(f"Well {between}{texts[0]}{between}{texts[1]}{between}!") == [*map(_alone, texts)]


def _alone(text: str) -> str:
    (value,) = values_in(text)
    return value


@given(st.text() | st.text('{}[]":,0123tfn \n`'))
def test_any_text_has_values_or_none(text: str) -> None:
    assert all(json.dumps(json.loads(value), sort_keys=True) == value for value in values_in(text))


def test_numbers_are_equal_by_value_and_true_is_no_number() -> None:
    assert values_in("[1.0, 1e2, -0.0]") == values_in("[1, 100, 0]")
    assert values_in("[true]") != values_in("[1]")
    assert values_in('{"a": 1, "b": 2}') == values_in('{"b":2,"a":1}')


def test_a_list_between_words_counts_only_where_no_object_is() -> None:
    assert values_in('See [1]: {"a": 2}') == values_in('{"a": 2}')
    assert values_in("The list is [1, 2].") == values_in("[1, 2]")


@pytest.mark.parametrize(
    "text",
    [
        *("", "words", "[NaN]", "[TOOL_CALLS]", "{'a': 1}", "[" * 5000, '{"a":' * 5000, "9" * 5000, "```json\n{\n```"),
        '{"name": "f", "arguments": {"a": 1}',  # cut off: the inner object is not the answer
        '{"a": 1} and then {"b": ',
    ],
)
def test_broken_json_has_no_values(text: str) -> None:
    assert values_in(text) == []


def test_one_list_of_calls_is_these_calls_and_a_list_of_anything_else_is_one_value() -> None:
    call = {"name": "f", "arguments": {"x": 1}}
    assert values_in(json.dumps([call, call])) == values_in(f"{json.dumps(call)}\n{json.dumps(call)}")
    assert len(values_in(json.dumps([call, {"name": "f"}]))) == 1
    assert values_in('[{"a": 1}]') != values_in('{"a": 1}')


def test_arguments_as_json_text_are_read_and_other_text_stays() -> None:
    wanted = values_in('{"name": "f", "arguments": {"x": 1}}')
    assert values_in(json.dumps({"name": "f", "arguments": '{"x": 1.0}'})) == wanted
    assert values_in(json.dumps({"name": "f", "arguments": "x is 1"})) not in (wanted, [])


def test_calls_are_those_of_the_last_message() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 0.1, "y": 2.0}}}
    row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}
    assert calls_of(row) == values_in('{"arguments": {"y": 2, "x": 0.1}, "name": "f"}')
    assert calls_of({"messages": row["messages"][:1]}) is None
    assert calls_of({"messages": [], "text": "plain"}) is None
    assert calls_of({}) is None
