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

import math
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.read.fields import Fields
from qdora_fast.data.read.marks import refuse_marked_part

Message = dict[str, Any]

REASONING = ("reasoning_content", "reasoning", "thinking", "thought", "reasoning_details")
"""Keys of a message, and types of a part of its content, that hold reasoning."""

REPAIRS: dict[str, str] = {
    "turns_merged": "turns of one speaker in a row, joined by a blank line",
    "tail_dropped": "turns after the last answer, dropped",
    "empty_system_dropped": "blank system messages, dropped",
    "placeholder_input": 'inputs such as "<noinput>" or "N/A", taken as no input',
    "unmarked_learned": "conversations with answers marked as learned beside answers without a mark; all are learned",
}
"""Every mending code with the sentence shown to people."""
TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of parts of a content that are text: of OpenAI's chat, and of its responses."""


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
    """The text of a value: None is "", a finite number its digits.

    Raises:
        RejectedRow: of another type, or not encodable as UTF-8. A list of texts is not a text: which one is meant?
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list | dict):
        raise RejectedRow("wrong_type", f"{field} is {_described(value)}")
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value in (math.inf, -math.inf):
        raise RejectedRow("wrong_type", f"{field} is {type(value).__name__} ({value!r:.40})")
    try:
        text = str(value)
    except ValueError as error:  # Python prints no integer of more than 4,300 digits
        raise RejectedRow("wrong_type", f"{field} is a number of thousands of digits") from error
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RejectedRow("broken_unicode", f"{field}, character {error.start + 1}") from error
    return text


def content_text(turn: Fields, key: str, place: str) -> str:
    """The text of a message's content: one text, or a list of parts of type text, whose meaning is their sum.

    Raises:
        RejectedRow: see `as_text`; or a part that is no text, has none, or is marked as not learned.
    """
    value = turn.get(key)
    if not isinstance(value, list) or not any(isinstance(part, dict) for part in value):
        return as_text(None if value == [] else value, f"{place}.{key}")
    parts = ((number, part) for number, part in enumerate(value) if not is_reasoning(part))
    return "".join(_part_text(turn, part, key, f"{place}.{key}[{number}]") for number, part in parts)


def is_reasoning(part: object) -> bool:
    """Whether a part of a content is reasoning, which `reasoning.py` reads."""
    return isinstance(part, dict) and part.get("type") in REASONING


def required_text(row: Fields, field: str, reason: str = "missing_field") -> str:
    """`as_text` of a field that must be there and not blank, else `RejectedRow(reason)`."""
    if field not in row:
        alike = next((key for key in row if key.strip().lower() == field.lower()), None)
        raise RejectedRow("missing_field", field if alike is None else f"{field} (the row has {alike!r})")
    text = as_text(row.get(field), field)
    if not text.strip():
        raise RejectedRow(reason, field)
    return text


def _part_text(turn: Fields, value: object, key: str, place: str) -> str:
    """The text of a part; between parts of type text, a bare text is one."""
    if not isinstance(value, dict):
        return as_text(value, place)
    part = turn.inner(f"{key}[]", value)
    kind = part.get("type")
    if kind not in (None, *TEXT_PARTS):
        raise RejectedRow("not_text", f"{place} is a part of type {kind}")
    refuse_marked_part(part, place)
    text = part.get("text")
    text = part.get("value") if text is None else text
    if text is None:
        raise RejectedRow("not_text", f"{place} is a part without `text` (it has {', '.join(part)})")
    return as_text(text, place)


def _described(value: list[Any] | dict[str, Any]) -> str:
    """A list or an object, for a message: "a list of 3 texts", "an object with name and value"."""
    if isinstance(value, dict):
        return f"an object with {', '.join(str(key)[:40] for key in list(value)[:4]) or 'nothing'}"
    kinds = {type(each).__name__ for each in value}
    what = {"str": "text", "dict": "object"}.get(kinds.pop(), "value") if len(kinds) == 1 else "value"
    return f"a list of {len(value)} {what}{'' if len(value) == 1 else 's'}"
