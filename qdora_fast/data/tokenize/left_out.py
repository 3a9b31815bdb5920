"""What is in a conversation and not in its text, because the chat template does not print it.

A template that knows no system message renders a row that has one without an error, and without it. So each piece of
a conversation is looked for in what comes out: not by its own words, which may be escaped, split, or stand there by
chance, but on a stand-in of the same shape (roles, and which pieces each message has) in which every piece is a mark
of its own. A mark that is not in the text is changed once more; if the text stays as it was, the piece is not printed.
That is asked once for each shape, so it costs hardly anything, and gives the same answer in every process.

Where reasoning is printed when its answer is the last and not in later turns, as Qwen3 has it, the template follows
what is served: that is `earlier_reasoning`, no loss. Ids of tool calls and the names of tool results are no pieces.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.read.messages import Message, Row
from qdora_fast.data.tokenize.chat_text import Tools, asks_for_clock
from qdora_fast.data.tokenize.modes import RenderMode
from qdora_fast.data.tokenize.spans import split_thinking
from qdora_fast.data.tokenize.vocabulary import Vocabulary

_OTHER = "choose another data.template"
_WITH_TOOLS = f"{_OTHER}, one with tools (chatml and alpaca have them)"

LOSSES: dict[str, tuple[str, str, str]] = {
    "reasoning": (
        "reasoning before an answer",
        "none of it is learned, and it is the greater part of what such rows teach",
        f"{_OTHER}, one that prints `reasoning_content` (chatml-think and alpaca-think do, as <think>...</think>)",
    ),
    "thinking": (
        "<think>...</think> in an answer",
        "none of it is learned, and it is the greater part of what such rows teach",
        f"{_OTHER}, one that leaves answers as they are (chatml and alpaca do)",
    ),
    "system": ("a system message", "nothing of it is learned", f"put it into the first question, or {_OTHER}"),
    "question": ("a user message", "the answers are learned without it", _OTHER),
    "input": ("an `input`", "the answers are learned without it", _OTHER),
    "answer": ("words beside a tool call", "the call alone is learned", _OTHER),
    "tools": ("tools", "calls are learned without them", _WITH_TOOLS),
    "tool_descriptions": ("descriptions of tools", "calls are learned without them", _WITH_TOOLS),
    "tool_parameters": ("parameters of tools", "calls are learned without them", _WITH_TOOLS),
    "tool_call": ("a tool call", "it is not learned", _WITH_TOOLS),
    "tool_arguments": ("arguments of a tool call", "they are not learned", _WITH_TOOLS),
    "tool_result": ("a tool result", "the answers are learned without it", _WITH_TOOLS),
    "name": ("a `name` of a speaker", "who speaks is not learned", "write it into the message's text if it matters"),
}
"""What a row has and its template does not print: (what, what follows, what to do), in the order to say it."""

EARLIER, DATED = "earlier_reasoning", "dated"
"""What is no loss and worth a line: reasoning left out of earlier turns; the date in the text."""

_ANOTHER_DAY = "2001-02-03"


class Accountant:
    """Says what of a row its text leaves out, remembering the answer for rows of the same shape."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._dated = vocabulary.date is not None and asks_for_clock(vocabulary.tokenizer)
        self._render_mode = vocabulary.render_mode
        self._known: dict[object, frozenset[str]] = {}

    def left_out(self, row: Row) -> frozenset[str]:
        """Keys of `LOSSES`, `EARLIER` and `DATED` that hold for a row that has been rendered."""
        return self.left_out_of(row["messages"], row["tools"]) if row["messages"] else frozenset()

    def left_out_of(self, messages: Sequence[Message], tools: Tools = None) -> frozenset[str]:
        """The same for a conversation, which need not end with an answer."""
        messages, vocabulary = self._vocabulary.of(messages, tools)
        shape = (tuple(map(_shape, messages)), _shape_of_tools(tools), vocabulary.render_mode.mode)
        if shape not in self._known:
            self._known[shape] = self._ask(_stand_in(messages, tools), vocabulary.render_mode)
        return self._known[shape]

    def _ask(self, stand_in: _StandIn, render_mode: RenderMode) -> frozenset[str]:
        self._render_mode = render_mode
        text = self._render(stand_in.messages, stand_in.tools)
        if text is None:  # the row itself was rendered: this template looks into the words
            return frozenset()
        missing = [piece for piece in stand_in.pieces if piece.mark not in text.lower()]
        lost = {self._verdict(piece, stand_in) for piece in missing if self._unmoved(piece, stand_in, text)} - {None}
        if "tools" in lost:
            lost -= {"tool_descriptions", "tool_parameters"}
        if "tool_call" in lost:
            lost -= {"tool_arguments"}
        if self._dated and text != self._render(stand_in.messages, stand_in.tools, date=_ANOTHER_DAY):
            lost.add(DATED)
        return frozenset(str(each) for each in lost)

    def _verdict(self, piece: _Piece, stand_in: _StandIn) -> str | None:
        """What is lost with a piece that is not printed; for reasoning, whether it would be in the last turn."""
        if piece.kind not in ("reasoning", "thinking"):
            return piece.kind
        alone = self._render(stand_in.messages[: piece.message + 1], stand_in.tools)
        return EARLIER if alone is not None and piece.mark in alone.lower() else piece.kind

    def _unmoved(self, piece: _Piece, stand_in: _StandIn, text: str) -> bool:
        """Whether the text stays the same when the piece says something else."""
        other = piece.mark[::-1]

        def changed(value: Any) -> Any:
            return json.loads(json.dumps(value).replace(piece.mark, other))

        return text == self._render(changed(stand_in.messages), changed(stand_in.tools))

    def _render(self, messages: Sequence[Message], tools: Tools, *, date: str | None = None) -> str | None:
        try:
            day = date or self._vocabulary.date
            return self._render_mode.render(self._vocabulary.tokenizer, messages, tools, date=day)
        except RejectedRow:
            return None


def loss_sentence(kind: str, rows: int, total: int, places: Sequence[str]) -> str:
    """A loss in one sentence: `rows` of `total` have what is not printed; `places` are those of the first."""
    what, so, fix = LOSSES[kind]
    counted = f"{rows:,} of {total:,} rows have {what} that the chat template does not print"
    return f"{counted}: {so}; {fix}\n  - first at {', '.join(places)}"


@dataclass(frozen=True)
class _Piece:
    """One mark, what kind of piece it stands for, and in which message."""

    mark: str
    kind: str
    message: int


@dataclass
class _StandIn:
    """A conversation in which every piece is a mark."""

    messages: list[Message] = field(default_factory=list)
    tools: Tools = None
    pieces: list[_Piece] = field(default_factory=list)

    def mark(self, kind: str) -> str:
        """A new mark, in the message that is being made."""
        piece = _Piece(f"qf{kind.replace('_', '')}{len(self.pieces)}x", kind, len(self.messages))
        self.pieces.append(piece)
        return piece.mark


def _shape(message: Message) -> tuple[object, ...]:
    """Which pieces a message has."""
    calls = tuple(bool(call.get("function", call).get("arguments")) for call in message.get("tool_calls") or ())
    content = message["content"]
    return (
        message["role"],
        bool(content.strip()),
        message["role"] == "assistant" and bool(split_thinking(content)[0].strip()),
        _has(message, "reasoning_content"),
        message["role"] != "tool" and _has(message, "name"),
        _has(message, "input"),
        calls,
    )


def _shape_of_tools(tools: Tools) -> tuple[object, ...] | None:
    """How many tools (one, or more), and whether any has a description, any has parameters."""
    if not tools:
        return None
    functions = [tool.get("function", tool) for tool in tools]
    described = any(_has(function, "description") for function in functions)
    return len(tools) > 1, described, any(map(_has_parameters, functions))


def _has(message: Mapping[str, Any], key: str) -> bool:
    return isinstance(message.get(key), str) and bool(message[key].strip())


def _has_parameters(function: Mapping[str, Any]) -> bool:
    parameters = function.get("parameters")
    return isinstance(parameters, dict) and bool(parameters.get("properties"))


def _stand_in(messages: Sequence[Message], tools: Tools) -> _StandIn:
    made = _StandIn()
    if tools:
        many, described, parameters = _shape_of_tools(tools) or ()
        made.tools = [_tool(made, bool(described), bool(parameters)) for _ in range(1 + bool(many))]
    called = iter(_call_ids(messages))
    for message in messages:
        made.messages.append(_message(made, _shape(message), called))
    return made


def _tool(made: _StandIn, described: bool, parameters: bool) -> dict[str, Any]:
    """A tool in the shape that every template can read; it is asked only for what the row's tools have."""
    properties: dict[str, Any] = {}
    if parameters:
        properties[made.mark("tool_parameters")] = {"type": "string", "description": "text"}
    return {
        "type": "function",
        "function": {
            "name": made.mark("tools"),
            "description": made.mark("tool_descriptions") if described else "text",
            "parameters": {"type": "object", "properties": properties, "required": list(properties)},
        },
    }


def _message(made: _StandIn, shape: tuple[Any, ...], called: Iterator[str]) -> Message:
    role, spoken, thinks, reasons, named, has_input, calls = shape
    message: Message = {"role": role, "content": ""}
    if has_input:
        message |= {"instruction": made.mark("question"), "input": made.mark("input")}
        message["content"] = f"{message['instruction']}\n\n{message['input']}"
    elif spoken:
        kind = {"system": "system", "assistant": "answer", "tool": "tool_result"}.get(role, "question")
        thought = f"<think>\n{made.mark('thinking')}\n</think>\n\n" if thinks else ""
        message["content"] = thought + made.mark(kind)
    if reasons:
        message["reasoning_content"] = made.mark("reasoning")
    if named:
        message["name"] = made.mark("name")
    if calls:
        message["tool_calls"] = [_call(made, given, f"qfcall{n:03}") for n, given in enumerate(calls)]
    if role == "tool":
        message |= {"name": "text", "tool_call_id": next(called, "qfcall000")}
    return message


def _call(made: _StandIn, given: bool, identity: str) -> dict[str, Any]:
    arguments = {made.mark("tool_arguments"): made.mark("tool_arguments")} if given else {}
    return {"id": identity, "type": "function", "function": {"name": made.mark("tool_call"), "arguments": arguments}}


def _call_ids(messages: Sequence[Message]) -> Iterator[str]:
    """The ids of the calls, one for each tool result, in their order; nine characters, as Mistral wants them."""
    waiting: list[str] = []
    for message in messages:
        if message.get("tool_calls"):
            waiting = [f"qfcall{n:03}" for n in range(len(message["tool_calls"]))]
        elif message["role"] == "tool":
            yield waiting.pop(0) if waiting else "qfcall000"
