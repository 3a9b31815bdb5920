r"""The JSON in a model's answer: the whole text, that in code fences, or that between other words.

Values come back as canonical JSON texts, so that `==` compares what is meant: keys in any order, 1 for 1.0, but not
true for 1. A tool call is {"name", "arguments"}, whichever of the usual forms the template writes:

    {"name": ..., "arguments": {...}}                           ours, Hermes, Qwen, Mistral
    {"name": ..., "parameters": {...}}                          Llama 3
    {"type": "function", "function": {"name": ..., "arguments": "{...}"}}        OpenAI, its arguments being JSON text

Broken JSON is not guessed at: an answer that was cut off in the middle of an object has no values. Calls that are
written without JSON, or with the name outside of it, are not read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

Values = list[str]

_FENCE = re.compile(r"```[\w-]*[ \t]*\n(.*?)```", re.DOTALL)
_TAGS = re.compile(r"</?[\w.-]+>|<\|[\w.-]+\|>|\[/?[A-Z_]+\]")
_START = re.compile(r'\{\s*["}]|\[\s*[\[{"\]\d-]')


def values_in(text: str) -> Values:
    """The JSON values of a text in canonical form, in their order; [] where there are none, or broken ones.

    Found between other words are objects, and lists only if there is no object: "[1]" may be a footnote.
    """
    for parts in ([text], _FENCE.findall(text)):
        try:
            values = [_parse(part) for part in parts]
        except (ValueError, RecursionError):
            continue
        if values:
            return _canonical(values)
    try:
        values = _between_words(text)
    except (ValueError, RecursionError):
        return []
    objects = [value for value in values if _holds_objects(value)]
    return _canonical(objects or values)


def is_json(text: str) -> bool:
    """Whether a text is nothing but JSON objects or a list, perhaps in a code fence or between the tags of calls."""
    fenced = _FENCE.fullmatch(text.strip())
    bare = _TAGS.sub("", fenced[1] if fenced else text).strip()
    try:
        return isinstance(_parse(bare), dict | list)
    except (ValueError, RecursionError):
        return bare.startswith("{") and bare.endswith("}") and bool(values_in(bare))


def calls_of(row: Mapping[str, Any]) -> Values | None:
    """The tool calls of a row's last message in canonical form; None where it has none."""
    messages = row.get("messages") or [{}]
    calls = messages[-1].get("tool_calls")
    return _canonical(json.loads(json.dumps(calls), parse_float=_number)) if calls else None


def _between_words(text: str) -> list[Any]:
    decoder = json.JSONDecoder(parse_float=_number, parse_constant=_no_constant)
    values: list[Any] = []
    position = 0
    while found := _START.search(text, position):
        try:
            value, position = decoder.raw_decode(text, found.start())
        except ValueError:
            if text[found.start()] == "{":
                raise  # an object that breaks off: what stands inside it is not the answer
            position = found.start() + 1
        else:
            values.append(value)
    return values


def _canonical(values: list[Any]) -> Values:
    """Each value as text with sorted keys. One list of nothing but calls is these calls."""
    if len(values) == 1 and isinstance(values[0], list) and values[0] and all(map(_is_call, values[0])):
        values = values[0]
    try:
        return [json.dumps(_call(value) if _is_call(value) else value, sort_keys=True) for value in values]
    except (ValueError, RecursionError):
        return []


def _is_call(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    function = value.get("function")
    if isinstance(function, dict):
        return isinstance(function.get("name"), str) and value.keys() <= {"function", "type", "id", "index"}
    other = value.keys() - {"type", "id", "index"}
    return isinstance(value.get("name"), str) and other in ({"name", "arguments"}, {"name", "parameters"})


def _call(value: dict[str, Any]) -> dict[str, Any]:
    function = value.get("function", value)
    arguments = function.get("arguments", function.get("parameters")) or {}
    if isinstance(arguments, str):
        with suppress(ValueError):  # else compared as the text that it is
            arguments = _parse(arguments)
    return {"name": function["name"], "arguments": arguments}


def _parse(text: str) -> Any:
    return json.loads(text, parse_float=_number, parse_constant=_no_constant)


def _number(text: str) -> float | int:
    """1.0 is 1."""
    value = float(text)
    return int(value) if value.is_integer() else value


def _no_constant(name: str) -> Any:
    """Python reads NaN and Infinity, which are no JSON and not equal to themselves."""
    raise ValueError(f"{name} is no JSON")


def _holds_objects(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(each, dict) for each in value))
