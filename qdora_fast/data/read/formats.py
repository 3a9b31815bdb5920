"""Every supported shape of a row, as a function into the one shape of `messages.py`.

    alpaca              {"instruction", "output"} and maybe "input", "system", "history" [[question, answer], ...]
    chatml              {"messages": [{"role", "content"}]} and maybe "tools"
    sharegpt            {"conversations": [{"from", "value"}]} and maybe "system", "tools"
    prompt_completion   {"prompt", "completion"}: two texts, or two message lists
    columns             any two columns named in `data.columns`, and known pairs such as question/answer
    text                {"text"}: no question and answer, every token is learned

The table `FORMATS` is the whole interface; which of them a file has is `detection.py`'s question.
A converter only reads the row. Whether the conversation makes sense is judged once for all, by `settle`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.read.messages import Message, as_text, as_tool_calls, as_tools, required_text, settle

PLACEHOLDER_INPUT = re.compile(r"\s*(<?no\s?input>?|n/a|none|null)?\s*", re.IGNORECASE)
PLACEHOLDER_OUTPUT = re.compile(r"\s*<?no\s?output>?\s*", re.IGNORECASE)

REASONING = ("reasoning_content", "reasoning", "thinking", "thought", "reasoning_details")
"""Keys of a message, and types of a part of its content, that hold reasoning."""
ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "chatgpt", "bard", "bing", "model", "function_call"),
    "tool": ("tool", "observation", "function_response", "function"),
}
ROLE_OF = {alias: role for role, aliases in ROLES.items() for alias in aliases}


@dataclass
class Conversation:
    """One row after conversion: messages, or plain `text`; `repairs` names what was mended."""

    messages: list[Message] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None
    text: str | None = None
    repairs: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Columns:
    """Names of the columns that play a part; `context` is further input to the question (Dolly)."""

    prompt: str
    response: str
    system: str | None = None
    context: str | None = None


Converter = Callable[[dict[str, Any]], Conversation]


def convert(row: dict[str, Any], converter: Converter) -> Conversation:
    """Convert and settle one row.

    Raises:
        RejectedRow: with the reason, when the row cannot be trained on.
    """
    try:
        conversation = converter(row)
    except RecursionError as error:
        raise RejectedRow("wrong_type", "nested too deeply") from error
    if conversation.text is None:
        conversation.messages, repairs = settle(conversation.messages)
        conversation.repairs += repairs
    return conversation


def from_alpaca(row: dict[str, Any]) -> Conversation:
    """Stanford Alpaca. The user turn keeps `instruction` and `input` apart, for the Alpaca text template."""
    messages = _system(row, "system")
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise RejectedRow("wrong_type", "history is not a list of [question, answer]")
    for pair in history:
        messages.append({"role": "user", "content": as_text(pair[0], "history")})
        messages.append({"role": "assistant", "content": as_text(pair[1], "history")})
    question, repairs = _question(row, "instruction", "input")
    return Conversation([*messages, question, _answer(row, "output")], repairs=repairs)


def from_columns(row: dict[str, Any], columns: Columns) -> Conversation:
    """A question column and an answer column."""
    question, repairs = _question(row, columns.prompt, columns.context)
    return Conversation([*_system(row, columns.system), question, _answer(row, columns.response)], repairs=repairs)


def from_chatml(row: dict[str, Any]) -> Conversation:
    """OpenAI's messages. `weight`, `loss_weight` 0 or `train` false on an answer keep it out of the loss."""
    return Conversation(_messages(row, "messages"), as_tools(row.get("tools")))


def from_sharegpt(row: dict[str, Any]) -> Conversation:
    """ShareGPT's from/value turns, tools included; a system prompt may stand beside them."""
    column = "conversations" if "conversations" in row else "messages"
    return Conversation([*_system(row, "system"), *_messages(row, column)], as_tools(row.get("tools")))


def from_prompt_completion(row: dict[str, Any]) -> Conversation:
    """TRL's prompt and completion. With message lists, only answers in the completion are trained."""
    tools = as_tools(row.get("tools"))
    if not isinstance(row.get("prompt"), list) and not isinstance(row.get("completion"), list):
        question, repairs = _question(row, "prompt", None)
        return Conversation([question, _answer(row, "completion")], tools, repairs=repairs)
    prompt = _messages(row, "prompt") if isinstance(row.get("prompt"), list) else [_question(row, "prompt", None)[0]]
    for message in prompt:
        if message["role"] == "assistant":
            message["train"] = False
    is_list = isinstance(row.get("completion"), list)
    completion = _messages(row, "completion") if is_list else [_answer(row, "completion")]
    return Conversation(prompt + completion, tools)


def from_text(row: dict[str, Any]) -> Conversation:
    """Plain text, learned from first to last token."""
    return Conversation(text=required_text(row, "text", reason="empty_answer"))


def columns_converter(columns: Columns) -> Converter:
    """`from_columns` for one choice of columns."""
    return partial(from_columns, columns=columns)


FORMATS: dict[str, Converter] = {
    "alpaca": from_alpaca,
    "chatml": from_chatml,
    "sharegpt": from_sharegpt,
    "prompt_completion": from_prompt_completion,
    "text": from_text,
}
"""Name -> converter; `columns` is missing here because it needs its column names."""


def _question(row: dict[str, Any], prompt: str, extra: str | None) -> tuple[Message, list[str]]:
    instruction = required_text(row, prompt, reason="empty_prompt")
    given = as_text(row.get(extra), extra) if extra else ""
    if PLACEHOLDER_INPUT.fullmatch(given):
        repairs = ["placeholder_input"] if given.strip() else []
        return {"role": "user", "content": instruction}, repairs
    content = f"{instruction}\n\n{given}"
    return {"role": "user", "content": content, "instruction": instruction, "input": given}, []


def _answer(row: dict[str, Any], column: str) -> Message:
    answer = required_text(row, column, reason="empty_answer")
    if PLACEHOLDER_OUTPUT.fullmatch(answer):
        raise RejectedRow("empty_answer", f"{column} is {answer.strip()!r}")
    return {"role": "assistant", "content": answer}


def _system(row: dict[str, Any], column: str | None) -> list[Message]:
    text = as_text(row.get(column), column) if column else ""
    return [{"role": "system", "content": text}] if text.strip() else []


def _messages(row: dict[str, Any], column: str) -> list[Message]:
    turns = row.get(column)
    if not turns:
        raise RejectedRow("missing_field", column)
    if not isinstance(turns, Sequence) or not all(isinstance(turn, dict) for turn in turns):
        raise RejectedRow("wrong_type", f"{column} is not a list of messages")
    return [_message(turn, f"{column}[{number}]") for number, turn in enumerate(turns)]


def _message(turn: dict[str, Any], place: str) -> Message:
    """One turn with either role/content or from/value keys."""
    speaker = turn.get("role") or turn.get("from")
    content = turn["content"] if turn.get("content") is not None else turn.get("value")
    thought, content = _reasoning(turn, content)
    name = speaker.strip().lower() if isinstance(speaker, str) else ""
    if name not in ROLE_OF:
        raise RejectedRow("unknown_role", f"{place}: {speaker!r}")
    role = ROLE_OF[name]
    if name == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": as_tool_calls(content)} | _training_mark(turn, place)
    message: Message = {"role": role, "content": as_text(content, place)}
    if role == "assistant":
        if turn.get("tool_calls"):
            message["tool_calls"] = as_tool_calls(turn["tool_calls"])
        message |= _training_mark(turn, place)
    if thought:
        message["reasoning_content"] = as_text(thought, f"{place}.reasoning")
    for key in ("name", "tool_call_id"):
        if turn.get(key) is not None:
            message[key] = as_text(turn[key], f"{place}.{key}")
    return message


def _reasoning(turn: dict[str, Any], content: object) -> tuple[str, object]:
    """What a turn says of its reasoning, under any name that servers have for it, and its content without that.

    `reasoning_content` (DeepSeek, vLLM), `reasoning` and `reasoning_details` (OpenRouter), `thinking` (Ollama), parts
    of the content of type thinking (Anthropic, Mistral) or reasoning. Where several say it, the first is taken.
    """
    parts = content if isinstance(content, list) else []
    inside = [part for part in parts if isinstance(part, dict) and part.get("type") in REASONING]
    said = [_thought(each) for each in (*(turn.get(key) for key in REASONING), inside)]
    rest = [part for part in parts if part not in inside] if inside else content
    return next((each for each in said if each.strip()), ""), rest


def _thought(value: object) -> str:
    """The text of reasoning: a text, or a list of parts."""
    if isinstance(value, dict):
        return next((text for key in (*REASONING, "text", "summary") if (text := _thought(value.get(key)))), "")
    if isinstance(value, list):
        return "".join(map(_thought, value))
    return value if isinstance(value, str) else ""


def _training_mark(turn: dict[str, Any], place: str) -> Message:
    for key in ("train", "weight", "loss_weight"):
        value = turn.get(key)
        if value is None or value == 1:
            continue
        if value == 0:  # also False
            return {"train": False}
        raise RejectedRow("wrong_type", f"{place}.{key} is {value!r}; only 0 and 1 are supported")
    return {}
