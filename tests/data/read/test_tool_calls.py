"""Nulls in tools and calls: kept where somebody wrote them, gone where a table of structs added them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.read.formats import FORMATS, Conversation, convert
from qdora_fast.data.read.readers import RawRow, read_file

TOOL = {
    "type": "function",
    "function": {
        "name": "book",
        "parameters": {
            "type": "object",
            "properties": {"row": {"type": "integer"}, "meal": {"type": ["string", "null"], "default": None}},
            "required": ["row", "meal"],
        },
    },
}
OTHER = {"type": "function", "function": {"name": "cancel", "parameters": {"type": "object", "properties": {}}}}


def row(calls: list[Any], tools: Any) -> dict[str, Any]:
    asking = {"role": "assistant", "content": "", "tool_calls": calls}
    return {"messages": [{"role": "user", "content": "A seat, please."}, asking], "tools": tools}


def call(arguments: Any, name: str = "book") -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


def arguments_of(conversation: Conversation) -> list[dict[str, Any]]:
    return [each["function"]["arguments"] for each in conversation.messages[1]["tool_calls"]]


@pytest.mark.parametrize("written", [lambda value: value, json.dumps])
def test_nulls_that_are_written_stay(written: Any) -> None:
    conversation = convert(
        row([call(written({"row": 1, "meal": None, "x": {"y": None}}))], written([TOOL])), FORMATS["chatml"]
    )
    assert arguments_of(conversation) == [{"row": 1, "meal": None, "x": {"y": None}}]
    assert conversation.tools == [TOOL]


def test_of_a_table_of_structs_only_the_padding_goes(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    calls = [call({"row": 1, "meal": None}), call({"reason": "ill"}, "cancel")]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row(calls, [TOOL, OTHER])]), path)
    (raw,) = read_file(path)
    assert isinstance(raw, RawRow)
    assert raw.row["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"row": 1, "meal": None, "reason": None}
    conversation = convert(raw.row, FORMATS["chatml"], raw.padded)
    assert arguments_of(conversation) == [{"row": 1, "meal": None}, {"reason": "ill"}]
    assert conversation.tools is not None
    assert conversation.tools[0] == TOOL
    assert conversation.tools[1]["function"]["name"] == "cancel"
    in_text = row([call('{"meal": null}')], json.dumps([TOOL]))  # in a table, too, text is as it was written
    assert arguments_of(convert(in_text, FORMATS["chatml"], ["messages"])) == [{"meal": None}]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [('{"a": 1, "a": 2}', "key 'a' stands twice"), ('{"a": NaN}', "not JSON compliant"), ("[1]", "not an object")],
)
def test_arguments_that_would_be_learned_wrongly_are_refused(arguments: str, said: str) -> None:
    with pytest.raises(RejectedRow, match="broken_tool_json") as caught:
        convert(row([call(arguments)], None), FORMATS["chatml"])
    assert said in caught.value.detail


def test_arguments_may_be_called_parameters_and_other_keys_are_told() -> None:
    given = [{"name": "book", "parameters": {"row": 1}, "index": 3}]
    conversation = convert(row(given, [json.dumps(TOOL)]), FORMATS["chatml"])
    assert arguments_of(conversation) == [{"row": 1}]
    assert conversation.tools == [TOOL]
    assert conversation.unread == [("messages[].tool_calls[].index", 3)]
