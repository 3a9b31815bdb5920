"""Tools and tool calls in OpenAI's form, from all the forms in which they come: objects, JSON text, bare functions.

A null that somebody wrote is a value, and stays. A table of structs (Parquet, Arrow) has every key in every object,
with null where it was never written: there, and only there, keys with null are removed again. Which nulls were written
cannot be told then, so those stay that mean something: a parameter's `default`, and arguments that the tool requires.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.read.fields import Fields
from qdora_fast.data.read.json_values import parse
from qdora_fast.system.json_files import is_deep
from qdora_fast.system.limits import JSON_DEPTH

Tools = list[dict[str, Any]]
SCHEMA_KEYS = ("type", "anyOf", "oneOf", "allOf", "enum", "$ref")
"""One of them is in the schema of a parameter."""


def as_tools(value: object, *, padded: bool = False) -> Tools | None:
    """Tool schemas from a list or a JSON string, each in OpenAI's {"type": "function", ...} form; none is None.

    Args:
        padded: objects in `value` come from a table of structs.

    Raises:
        RejectedRow: not JSON, or not a list of objects that have a name.
    """
    tools = as_json(value, "tools")
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict | str) for tool in tools):
        raise RejectedRow("broken_tool_json", "tools is not a list of objects")
    return [_tool(tool, padded and isinstance(value, list)) for tool in tools]


def as_tool_calls(value: object, turn: Fields, tools: Tools | None = None, *, padded: bool = False) -> Tools:
    """Tool calls from OpenAI's form, from bare {"name", "arguments"} or from JSON text of either.

    Args:
        turn: the message, which is told what of the calls is not read.
        tools: those of the row, which say what arguments they require.
        padded: objects in `value` come from a table of structs.

    Raises:
        RejectedRow: not JSON, without a name, or with arguments that are no object.
    """
    calls = as_json(value, "tool call")
    padded = padded and not isinstance(value, str)
    return [_tool_call(call, turn, tools, padded) for call in (calls if isinstance(calls, list) else [calls])]


def as_json(value: object, what: str) -> Any:
    """JSON text once parsed; anything else as it is. It must be possible to write it as JSON again.

    Raises:
        RejectedRow: not JSON, with a key that stands twice, with NaN, or not encodable.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        parsed = parse(value) if isinstance(value, str) else value
        if is_deep(parsed):
            raise ValueError(f"nested more than {JSON_DEPTH} levels deep")
        json.dumps(parsed, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise RejectedRow("broken_unicode", what) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise RejectedRow("broken_tool_json", f"{what}: {error}") from error
    return parsed


def _tool(given: Any, padded: bool) -> dict[str, Any]:
    tool: dict[str, Any] = as_json(given, "tools") if isinstance(given, str) else given
    if not isinstance(tool, dict):
        raise RejectedRow("broken_tool_json", "tools is not a list of objects")
    if tool.get("function") is None:
        tool = {"type": "function", "function": tool}
    if not isinstance(tool["function"], dict) or not isinstance(tool["function"].get("name"), str):
        raise RejectedRow("broken_tool_json", "a tool without name")
    return dict(without_padding(tool)) if padded and isinstance(given, dict) else tool


def _tool_call(given: object, turn: Fields, tools: Tools | None, padded: bool) -> dict[str, Any]:
    call = as_json(given, "tool call") if isinstance(given, str) else given
    inside = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(inside, dict | None):
        raise RejectedRow("broken_tool_json", "a tool call without name")
    outer = turn.inner("tool_calls[]", call)
    outer.get("type")
    outer.get("function")
    function = outer if inside is None else turn.inner("tool_calls[].function", inside)
    name = function.get("name")
    if not isinstance(name, str):
        raise RejectedRow("broken_tool_json", "a tool call without name")
    identity = {"id": outer.get("id")} if outer.peek("id") else {}
    arguments = _arguments(function, name, tools, padded)
    return identity | {"type": "function", "function": {"name": name, "arguments": arguments}}


def _arguments(function: Fields, name: str, tools: Tools | None, padded: bool) -> dict[str, Any]:
    key = "parameters" if function.peek("arguments") is None and "parameters" in function else "arguments"  # Llama 3
    value = function.get(key)
    arguments = as_json({} if value in (None, "", []) else value, key)
    if not isinstance(arguments, dict):
        raise RejectedRow("broken_tool_json", f"arguments of {name} are not an object")
    if not padded or isinstance(value, str):
        return arguments
    required = _required(name, tools)
    return {key: without_padding(each) for key, each in arguments.items() if each is not None or key in required}


def _required(name: str, tools: Tools | None) -> Sequence[str]:
    """The arguments that the tool of this name requires."""
    parameters = next((tool["function"].get("parameters") for tool in tools or [] if _name(tool) == name), None)
    required = parameters.get("required") if isinstance(parameters, dict) else None
    return required if isinstance(required, list) else []


def _name(tool: dict[str, Any]) -> Any:
    return tool["function"]["name"]


def without_padding(value: Any) -> Any:
    """A value without the keys with null that a struct adds; a parameter's `default: null` stays."""
    if isinstance(value, dict):
        is_schema = any(value.get(key) is not None for key in SCHEMA_KEYS)
        return {
            key: without_padding(each)
            for key, each in value.items()
            if each is not None or (key == "default" and is_schema)
        }
    if isinstance(value, list):
        return [without_padding(each) for each in value]
    return value
