"""Each dialect as a row, and the conversation it must become; then every way a row can be broken."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.read.formats import FORMATS, Columns, Converter, columns_converter, convert

QUESTION = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
DOLLY = Columns("instruction", "response", context="context")


def messages_of(name: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    return convert(row, FORMATS[name]).messages


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("alpaca", {"instruction": "2+2?", "output": "4"}),
        ("alpaca", {"instruction": "2+2?", "input": " <noInput> ", "output": 4, "text": "rendered before"}),
        ("alpaca", {"instruction": "2+2?", "input": None, "output": "4", "system": "", "history": None}),
        ("chatml", {"messages": [QUESTION, ANSWER]}),
        ("chatml", {"messages": [QUESTION, ANSWER | {"weight": 1, "tool_calls": None, "name": None}], "tools": []}),
        ("chatml", {"messages": [{"role": "user", "content": [{"type": "text", "text": "2+2?"}]}, ANSWER]}),
        ("chatml", {"messages": [{"role": "user", "content": [{"type": "text", "value": "2+2?"}]}, ANSWER]}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}),
        ("sharegpt", {"conversations": [QUESTION, ANSWER], "tools": "[]"}),
        ("sharegpt", {"conversations": None, "messages": [QUESTION, ANSWER]}),
        ("prompt_completion", {"prompt": "2+2?", "completion": "4"}),
        ("prompt_completion", {"prompt": [QUESTION], "completion": [ANSWER]}),
        ("prompt_completion", {"prompt": [QUESTION], "completion": "4"}),
    ],
)
def test_every_dialect_becomes_the_same_conversation(name: str, row: dict[str, Any]) -> None:
    assert messages_of(name, row) == [QUESTION, ANSWER]


def test_alpaca_keeps_instruction_and_input_apart_and_together() -> None:
    row = {"instruction": "Add", "input": "2 and 2", "output": "4", "system": "Count.", "history": [["1+1?", "2"]]}
    assert messages_of("alpaca", row) == [
        {"role": "system", "content": "Count."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "Add\n\n2 and 2", "instruction": "Add", "input": "2 and 2"},
        ANSWER,
    ]


def test_columns_are_mapped_with_system_and_context() -> None:
    mapped = convert({"q": "2+2?", "a": 4, "s": "Count."}, columns_converter(Columns("q", "a", "s"))).messages
    assert mapped == [{"role": "system", "content": "Count."}, QUESTION, ANSWER]
    dolly = convert({"instruction": "Add", "context": "2, 2", "response": "4"}, columns_converter(DOLLY)).messages
    assert dolly[0] == {"role": "user", "content": "Add\n\n2, 2", "instruction": "Add", "input": "2, 2"}


def test_sharegpt_tools_are_parsed_once() -> None:
    row = {
        "system": "Use tools.",
        "tools": json.dumps([TOOL["function"]]),
        "conversations": [
            {"from": "human", "value": "2+2?"},
            {"from": "function_call", "value": json.dumps({"name": "add", "arguments": {"a": 2}})},
            {"from": "observation", "value": "4"},
            {"from": "gpt", "value": "4"},
        ],
    }
    conversation = convert(row, FORMATS["sharegpt"])
    assert conversation.tools == [TOOL]
    assert conversation.messages == [
        {"role": "system", "content": "Use tools."},
        QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "4"},
        ANSWER,
    ]


@pytest.mark.parametrize("arguments", [{"a": 2}, '{"a": 2}', {"a": 2, "b": None}])
def test_openai_tool_calls_in_all_their_forms(arguments: object) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
    asking = {"role": "assistant", "content": None, "tool_calls": [call]}
    row = {"messages": [QUESTION, asking], "tools": [TOOL | {"strict": None}]}
    conversation = convert(row, FORMATS["chatml"], padded=["messages", "tools"])
    assert conversation.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert conversation.tools == [TOOL]


def test_the_functions_and_calls_that_openai_had_before_tools_are_read() -> None:
    asking = {"role": "assistant", "content": None, "function_call": CALL["function"]}
    row = {"messages": [QUESTION, asking], "functions": [TOOL["function"]], "tools": None}
    conversation = convert(row, FORMATS["chatml"])
    assert (conversation.messages[1]["tool_calls"], conversation.tools) == ([CALL], [TOOL])
    assert conversation.unread == []


@pytest.mark.parametrize(
    ("converter", "row"),
    [
        (FORMATS["chatml"], {"messages": [QUESTION, ANSWER]}),
        (FORMATS["chatml"], {"messages": json.dumps([QUESTION, ANSWER])}),
        (FORMATS["chatml"], {"messages": [{"role": "system", "content": "Count."}, QUESTION, ANSWER]}),
        (FORMATS["sharegpt"], {"conversations": [QUESTION, ANSWER]}),
        (FORMATS["prompt_completion"], {"prompt": "2+2?", "completion": "4"}),
        (FORMATS["prompt_completion"], {"prompt": json.dumps([QUESTION]), "completion": json.dumps([ANSWER])}),
        (FORMATS["alpaca"], {"instruction": "2+2?", "output": "4"}),
        (columns_converter(Columns("query", "response")), {"query": "2+2?", "response": "4", "history": []}),
        (columns_converter(Columns("prompt", "response")), {"prompt": [QUESTION], "response": "4"}),
    ],
)
@pytest.mark.parametrize("column", ["system", "system_prompt"])
def test_a_system_prompt_beside_any_of_them_is_read_once(
    converter: Converter, row: dict[str, Any], column: str
) -> None:
    conversation = convert(row | {column: "Count."}, converter)
    assert conversation.messages == [{"role": "system", "content": "Count."}, QUESTION, ANSWER]
    assert conversation.unread == []


def test_earlier_turns_of_ms_swift_are_read_and_a_history_of_another_shape_is_not() -> None:
    swift = columns_converter(Columns("query", "response"))
    row = {"query": "2+2?", "response": "4", "history": [["1+1?", "2"]]}
    assert [message["content"] for message in convert(row, swift).messages] == ["1+1?", "2", "2+2?", "4"]
    assert convert(row | {"history": "a long one"}, swift).unread == [("history", "a long one")]


def test_tools_beside_a_question_and_an_answer_are_read_where_they_are_tools() -> None:
    row = {"query": "2+2?", "answers": '[{"name": "add"}]', "tools": json.dumps([TOOL])}
    conversation = convert(row, columns_converter(Columns("query", "answers")))
    assert (conversation.tools, conversation.unread) == ([TOOL], [])
    garden = convert({"instruction": "Dig.", "output": "Done.", "tools": "spade, hoe"}, FORMATS["alpaca"])
    assert (garden.tools, garden.unread) == (None, [("tools", "spade, hoe")])


def test_parts_of_a_content_are_joined_and_nothing_else_is() -> None:
    parts = [{"type": "text", "text": "2+"}, {"type": "input_text", "text": "2?", "cache_control": {"type": "short"}}]
    conversation = convert({"messages": [{"role": "user", "content": parts}, ANSWER]}, FORMATS["chatml"])
    assert conversation.messages == [QUESTION, ANSWER]
    assert [name for name, _ in conversation.unread] == ["messages[].content[].cache_control"]


@pytest.mark.parametrize(
    ("name", "row", "detail"),
    [
        ("alpaca", {"instruction": "x", "output": ["a", "b", "c"]}, "output is a list of 3 texts"),
        ("alpaca", {"instruction": ["x"], "output": "y"}, "instruction is a list of 1 text"),
        ("alpaca", {"instruction": "x", "output": [{"type": "text", "text": "y"}]}, "output is a list of 1 object"),
        ("prompt_completion", {"prompt": "x", "completion": ["y", 1]}, "completion is a list of 2 values"),
        ("prompt_completion", {"prompt": "x", "completion": {"value": "y"}}, "completion is an object with value"),
        ("chatml", {"messages": [{"role": "user", "content": ["x", "y"]}, ANSWER]}, "content is a list of 2 texts"),
        ("chatml", {"messages": [{"role": "user", "content": [{"type": "text", "content": "x"}]}]}, "without `text`"),
        ("chatml", {"messages": [{"role": "user", "Content": "x"}, ANSWER]}, "content (it has 'Content')"),
        ("chatml", {"messages": str([QUESTION, ANSWER])}, "messages as text that is not JSON"),
        ("alpaca", {"instruction": str([QUESTION]), "output": "y"}, "messages as text that is not JSON"),
        ("alpaca", {"instruction": "x", "Output": "y"}, "output (the row has 'Output')"),
        ("chatml", {"messages": [QUESTION, ANSWER], "label": False}, "label is false"),
        ("prompt_completion", {"prompt": "x", "completion": "y", "label": False}, "label is false"),
        ("chatml", {"messages": [QUESTION, ANSWER], "images": ["a.png"]}, "column images"),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "<image> x"}, ANSWER], "image": "a"},
            "column image",
        ),
        ("alpaca", {"instruction": "x", "output": "y", "pic": {"bytes": b"x", "path": None}}, "column pic"),
        ("chatml", {"messages": [QUESTION | {"audio": {"id": "1"}}, ANSWER]}, "messages[0].audio"),
    ],
)
def test_what_has_no_one_meaning_is_refused_by_its_name(name: str, row: dict[str, Any], detail: str) -> None:
    with pytest.raises(RejectedRow) as caught:
        convert(row, FORMATS[name])
    assert detail in caught.value.detail


def test_what_looks_like_messages_but_is_data_stays_text() -> None:
    data = '[{"role": "admin", "name": "x"}]'
    rows = [{"instruction": "Make a user.", "output": data}, {"instruction": data, "output": "A user."}]
    rows.append({"instruction": f"{json.dumps([QUESTION])} Summarise.", "output": "A sum."})
    for row in rows:
        assert [message["content"] for message in messages_of("alpaca", row)] == list(row.values())


def test_a_name_of_a_picture_or_a_label_beside_a_question_and_an_answer_is_only_unread() -> None:
    more = {"image": "http://shop/a.png", "label": False, "images": [], "loss": 1.5, "weight": 0}
    conversation = convert({"q": "x", "a": "y"} | more, columns_converter(Columns("q", "a")))
    assert [name for name, _ in conversation.unread] == ["image", "label", "loss", "weight"]


@pytest.mark.parametrize("mark", [{"weight": 0}, {"loss_weight": 0.0}, {"train": False}])
def test_answers_can_be_kept_out_of_the_loss(mark: dict[str, Any]) -> None:
    trained = messages_of("chatml", {"messages": [QUESTION, ANSWER | mark, QUESTION, ANSWER]})
    assert [message.get("train", True) for message in trained] == [True, False, True, True]


def test_only_the_completion_is_trained() -> None:
    row = {"prompt": [QUESTION, ANSWER, QUESTION], "completion": [ANSWER]}
    assert messages_of("prompt_completion", row)[1] == ANSWER | {"train": False}


def test_text_stays_as_it_is() -> None:
    assert convert({"text": " once \n"}, FORMATS["text"]).text == " once \n"


@pytest.mark.parametrize(
    ("messages", "expected", "repair"),
    [
        ([QUESTION, QUESTION, ANSWER], [{"role": "user", "content": "2+2?\n\n2+2?"}, ANSWER], "turns_merged"),
        ([QUESTION, ANSWER, ANSWER], [QUESTION, {"role": "assistant", "content": "4\n\n4"}], "turns_merged"),
        ([QUESTION, ANSWER, QUESTION], [QUESTION, ANSWER], "tail_dropped"),
        ([{"role": "system", "content": " "}, QUESTION, ANSWER], [QUESTION, ANSWER], "empty_system_dropped"),
    ],
)
def test_small_faults_are_mended_and_named(
    messages: list[dict[str, Any]], expected: list[dict[str, Any]], repair: str
) -> None:
    conversation = convert({"messages": messages}, FORMATS["chatml"])
    assert conversation.messages == expected
    assert conversation.repairs == [repair]


def chat(*messages: object, **more: object) -> dict[str, Any]:
    return {"messages": list(messages), **more}


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("alpaca", {"instruction": "x"}, "missing_field"),
        ("alpaca", {"instruction": " ", "output": "y"}, "empty_prompt"),
        ("alpaca", {"instruction": "x", "output": " \n"}, "empty_answer"),
        ("alpaca", {"instruction": "x", "output": None}, "empty_answer"),
        ("alpaca", {"instruction": "x", "output": float("nan")}, "empty_answer"),
        ("alpaca", {"instruction": "x", "output": "<nooutput>"}, "empty_answer"),
        ("alpaca", {"instruction": "x", "output": {"a": 1}}, "wrong_type"),
        ("alpaca", {"instruction": "x", "output": True}, "wrong_type"),
        ("alpaca", {"instruction": "x", "output": "\ud800"}, "broken_unicode"),
        ("alpaca", {"instruction": "x", "output": "y", "history": [["a"]]}, "wrong_type"),
        ("chatml", {}, "missing_field"),
        ("chatml", {"messages": "hello"}, "wrong_type"),
        ("chatml", chat("hello"), "wrong_type"),
        ("chatml", chat(QUESTION), "no_assistant_turn"),
        ("chatml", chat(ANSWER), "no_user_turn"),
        ("chatml", chat({"role": "user", "content": ""}, ANSWER), "empty_prompt"),
        ("chatml", chat(QUESTION, {"role": "assistant", "content": None}), "empty_answer"),
        ("chatml", chat(QUESTION, {"role": "critic", "content": "x"}), "unknown_role"),
        ("chatml", chat(QUESTION, {"content": "x"}), "unknown_role"),
        ("chatml", chat(QUESTION, {"role": "system", "content": "x"}, ANSWER), "system_not_first"),
        ("chatml", chat(QUESTION, ANSWER | {"weight": 0}), "nothing_to_train"),
        ("chatml", chat(QUESTION, ANSWER | {"weight": 0.5}), "wrong_type"),
        ("chatml", chat(QUESTION, ANSWER | {"train": False}, ANSWER), "same_role_twice"),
        ("chatml", chat({"role": "user", "content": [{"type": "image"}]}, ANSWER), "not_text"),
        ("chatml", chat(QUESTION, ANSWER, tools="[{"), "broken_tool_json"),
        ("chatml", chat(QUESTION, ANSWER, tools='{"name": "add"}'), "broken_tool_json"),
        ("chatml", chat(QUESTION, ANSWER | {"tool_calls": [{"id": "1"}]}), "broken_tool_json"),
        ("sharegpt", {"conversations": [{"from": "function_call", "value": "add(2)"}]}, "broken_tool_json"),
        (
            "sharegpt",
            {"conversations": [{"from": "function_call", "value": '{"name": "a", "arguments": [1]}'}]},
            "broken_tool_json",
        ),
        ("prompt_completion", {"prompt": "x", "completion": ""}, "empty_answer"),
        ("prompt_completion", {"completion": "x"}, "missing_field"),
        ("text", {"text": "  "}, "empty_answer"),
    ],
)
def test_broken_rows_are_rejected_with_their_reason(name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RejectedRow) as caught:
        convert(row, FORMATS[name])
    assert caught.value.reason == reason


TURN_KEYS = ["role", "content", "from", "value", "tool_calls", "name"]
wild = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8) | st.just("user"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(TURN_KEYS), inner, max_size=4),
    max_leaves=10,
)
FIELDS = [
    "instruction",
    "input",
    "output",
    "system",
    "history",
    "messages",
    "conversations",
    "tools",
    "prompt",
    "completion",
    "text",
]
CONVERTERS: list[Converter] = [*FORMATS.values(), columns_converter(Columns("prompt", "output", "system", "input"))]


@given(row=st.dictionaries(st.sampled_from(FIELDS), wild, max_size=6), converter=st.sampled_from(CONVERTERS))
def test_any_row_is_converted_or_rejected_and_never_crashes(row: dict[str, Any], converter: Converter) -> None:
    try:
        conversation = convert(row, converter)
    except RejectedRow:
        return
    if conversation.text is not None:
        assert conversation.text.strip()
        return
    assert conversation.messages[-1]["role"] == "assistant"
    for message in conversation.messages:
        assert message["role"] in ("system", "user", "assistant", "tool")
        message["content"].encode()


@pytest.mark.parametrize(
    "said",
    [
        {"content": "4", "reasoning_content": "two twice"},
        {"content": "4", "reasoning": "two twice"},
        {"content": "4", "thinking": "two twice", "reasoning": ""},
        {"content": "4", "reasoning_details": [{"type": "reasoning.text", "text": "two twice", "index": 0}]},
        {"content": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "two twice"}]}, "4"]},
        {"content": [{"type": "thinking", "thinking": "two twice", "signature": "x"}, {"type": "text", "text": "4"}]},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "two twice"}]}, "4"]},
        {"content": [{"type": "reasoning", "text": "two "}, {"type": "reasoning", "text": "twice"}, "4"]},
    ],
)
def test_reasoning_is_read_under_any_name_that_servers_have_for_it(said: dict[str, Any]) -> None:
    row = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", **said}]}
    answer = convert(row, FORMATS["chatml"]).messages[1]
    assert (answer["reasoning_content"], answer["content"]) == ("two twice", "4")


def test_what_is_no_text_is_no_reasoning_and_joined_turns_keep_theirs() -> None:
    turns = [{"role": "assistant", "content": text, "reasoning": why} for text, why in (("a", True), ("b", "so"))]
    row = {"messages": [{"role": "user", "content": "2+2?"}, *turns]}
    answer = convert(row, FORMATS["chatml"]).messages[1]
    assert (answer["content"], answer["reasoning_content"]) == ("a\n\nb", "so")
