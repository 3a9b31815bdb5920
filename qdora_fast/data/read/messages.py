"""The one shape of a conversation, and the rules that every row must meet to have it.

A conversation is a list of messages in the form chat templates expect:

    {"role": "system" | "user" | "assistant" | "tool", "content": str,
     "tool_calls": [{"type": "function", "function": {"name": str, "arguments": dict}}],   (assistant, optional)
     "reasoning_content": str, "name": str, "tool_call_id": str,                           (optional)
     "instruction": str, "input": str,   (optional: the two halves of an Alpaca user turn, whose content joins them)
     "train": False}                     (optional: no loss on this answer)

`settle` puts messages into that shape: small faults with one obvious meaning are mended and named,
anything else raises `RejectedRow`. The text itself is never changed: no stripping, no normalisation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

from qdora_fast.data.clean.rejects import RejectedRow

Message = dict[str, Any]

REPAIRS: dict[str, str] = {
    "turns_merged": "turns of one speaker in a row, joined by a blank line",
    "tail_dropped": "turns after the last answer, dropped",
    "empty_system_dropped": "blank system messages, dropped",
    "placeholder_input": 'inputs such as "<noinput>" or "N/A", taken as no input',
}
"""Every mending code with the sentence shown to people."""


class RowMeta(TypedDict):
    """Where a row comes from. `row` counts the rows read from 1; `hash` is SHA-256 of its content; `origin` is the
    number of its source in the config."""

    source: str
    row: int
    hash: str
    origin: NotRequired[int]


class Row(TypedDict):
    """One training example. `messages` is empty for plain-text rows, which have `text` instead."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None
    meta: RowMeta
    text: NotRequired[str]


ROW_SHAPE = {"messages": [{"role": str, "content": str}], "meta": {"hash": str, "source": str}}
"""Of a `Row` in a file of prepared rows, see `json_files.Shape`."""


def prompt_of(messages: Sequence[Message]) -> list[Message]:
    """Everything before the last answer: what a model is given to answer."""
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=len(messages))
    return list(messages[:last])


def settle(messages: Sequence[Message]) -> tuple[list[Message], list[str]]:
    """Check and mend a conversation; returns it with the codes of what was mended (see `REPAIRS`).

    Raises:
        RejectedRow: the conversation cannot be trained on.
    """
    repairs: list[str] = []
    filled = [m for m in messages if m["role"] != "system" or m["content"].strip()]
    if len(filled) < len(messages):
        repairs.append("empty_system_dropped")
    merged = _merge_neighbours(filled)
    if len(merged) < len(filled):
        repairs.append("turns_merged")
    answers = [i for i, message in enumerate(merged) if message["role"] == "assistant"]
    if not answers:
        raise RejectedRow("no_assistant_turn")
    if answers[-1] < len(merged) - 1:
        merged = merged[: answers[-1] + 1]
        repairs.append("tail_dropped")
    _check_turns(merged)
    return merged, repairs


def _merge_neighbours(messages: Sequence[Message]) -> list[Message]:
    """Join turns of the same speaker. Tool results stay apart: several calls have several results."""
    merged: list[Message] = []
    for message in messages:
        previous = merged[-1] if merged else None
        same = previous is not None and previous["role"] == message["role"] and message["role"] != "tool"
        if previous is None or not same or "tool_calls" in previous or "tool_calls" in message:
            merged.append(message)
            continue
        if previous.get("train", True) != message.get("train", True):
            raise RejectedRow("same_role_twice")
        joined = {key: value for key, value in previous.items() if key not in ("instruction", "input")}
        thoughts = [each["reasoning_content"] for each in (previous, message) if each.get("reasoning_content")]
        joined |= {"reasoning_content": "\n\n".join(thoughts)} if thoughts else {}
        merged[-1] = joined | {"content": f"{previous['content']}\n\n{message['content']}"}
    return merged


def _check_turns(messages: Sequence[Message]) -> None:
    for number, message in enumerate(messages, 1):
        role, blank = message["role"], not message["content"].strip()
        if role == "system" and number > 1:
            raise RejectedRow("system_not_first", f"message {number}")
        if role == "user" and blank:
            raise RejectedRow("empty_prompt", f"message {number}")
        if role == "assistant" and blank and "tool_calls" not in message:
            raise RejectedRow("empty_answer", f"message {number}")
    if all(message["role"] in ("system", "assistant") for message in messages):
        raise RejectedRow("no_user_turn")
    if not any(message["role"] == "assistant" and message.get("train", True) for message in messages):
        raise RejectedRow("nothing_to_train")


def as_text(value: object, field: str) -> str:
    """The text of a value: None is "", a finite number its digits, a list of text parts their sum.

    Raises:
        RejectedRow: of another type, holding a non-text part, or not encodable as UTF-8.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list):
        return "".join(_part_text(part, field) for part in value)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value in (math.inf, -math.inf):
        raise RejectedRow("wrong_type", f"{field} is {type(value).__name__}")
    try:
        text = str(value)
    except ValueError as error:  # Python prints no integer of more than 4,300 digits
        raise RejectedRow("wrong_type", f"{field} is a number of thousands of digits") from error
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RejectedRow("broken_unicode", f"{field}, character {error.start + 1}") from error
    return text


def required_text(row: dict[str, Any], field: str, reason: str = "missing_field") -> str:
    """`as_text` of a field that must be there and not blank, else `RejectedRow(reason)`."""
    if field not in row:
        raise RejectedRow("missing_field", field)
    text = as_text(row[field], field)
    if not text.strip():
        raise RejectedRow(reason, field)
    return text


def as_tools(value: object) -> list[dict[str, Any]] | None:
    """Tool schemas from a list or a JSON string, each in OpenAI's {"type": "function", ...} form; none is None.

    Raises:
        RejectedRow: not JSON, or not a list of objects that have a name.
    """
    tools = _parsed(value, "tools")
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RejectedRow("broken_tool_json", "tools is not a list of objects")
    wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    for tool in wrapped:
        if not isinstance(tool["function"], dict) or not isinstance(tool["function"].get("name"), str):
            raise RejectedRow("broken_tool_json", "a tool without name")
    return [_without_nulls(tool) for tool in wrapped]


def as_tool_calls(value: object) -> list[dict[str, Any]]:
    """Tool calls from OpenAI's form, from bare {"name", "arguments"} or from JSON text of either.

    Raises:
        RejectedRow: not JSON, without a name, or with arguments that are no object.
    """
    calls = _parsed(value, "tool call")
    return [_tool_call(call) for call in (calls if isinstance(calls, list) else [calls])]


def _tool_call(call: object) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RejectedRow("broken_tool_json", "a tool call without name")
    arguments = _parsed(function.get("arguments") or {}, "arguments")
    if not isinstance(arguments, dict):
        raise RejectedRow("broken_tool_json", f"arguments of {function['name']} are not an object")
    identity = {"id": call["id"]} if isinstance(call, dict) and call.get("id") else {}
    arguments = _without_nulls(arguments)
    return identity | {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _parsed(value: object, what: str) -> Any:
    """JSON text once parsed; anything else as it is. Text in it must be encodable."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
        json.dumps(parsed, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RejectedRow("broken_unicode", what) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise RejectedRow("broken_tool_json", f"{what}: {error}") from error
    return parsed


def _without_nulls(value: Any) -> Any:
    """Drop the keys with null that Arrow adds to objects of different shapes."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value


def _part_text(part: object, field: str) -> str:
    if isinstance(part, str):
        return as_text(part, field)
    if not isinstance(part, dict) or part.get("type", "text") != "text":
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise RejectedRow("not_text", f"{field} has a part of type {kind}")
    text = part.get("text")
    return as_text(part.get("value") if text is None else text, field)
