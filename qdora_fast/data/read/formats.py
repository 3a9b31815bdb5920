"""Every supported shape of a row, as a function into the one shape of `messages.py`.

    alpaca              {"instruction", "output"} and maybe "input", "system", "history" [[question, answer], ...]
    chatml              {"messages": [{"role", "content"}]} and maybe "tools"
    sharegpt            {"conversations": [{"from", "value"}]} and maybe "system", "tools"
    prompt_completion   {"prompt", "completion"}: two texts, or two message lists
    columns             any two columns named in `data.columns`, and known pairs such as question/answer
    text                {"text"}: no question and answer, every token is learned

The table `FORMATS` is the whole interface; which of them a file has is `detection.py`'s question.
A converter only reads the row, as `Fields`, which know afterwards what was left unread. Whether the conversation makes
sense is judged once for all, by `settle`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.read.fields import Fields, is_blank
from qdora_fast.data.read.marks import refuse_marked_row, trains
from qdora_fast.data.read.media import refuse_media
from qdora_fast.data.read.messages import Message, as_text, content_text, required_text, settle
from qdora_fast.data.read.reasoning import reasoning_text
from qdora_fast.data.read.tool_calls import Tools, as_json, as_tool_calls, as_tools

PLACEHOLDER_INPUT = re.compile(r"(<?no\s?input>?|n/a|none|null)?", re.IGNORECASE)
PLACEHOLDER_OUTPUT = re.compile(r"<?no\s?output>?", re.IGNORECASE)

ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "chatgpt", "bard", "bing", "model", "function_call"),
    "tool": ("tool", "observation", "function_response", "function"),
}
ROLE_OF = {alias: role for role, aliases in ROLES.items() for alias in aliases}
PLAIN = frozenset(("role", "content", "from", "value"))
"""The keys of most messages, which have nothing else to look at."""
CONTENTS = ("content", "value", "text", "message")
"""Names of a content, some of which are not read."""
SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
WRITTEN_TURNS = re.compile(
    r"""\s*(array\()?\[\s*\{.*?['"](role|from)['"]\s*:\s*['"](system|user|human|assistant|gpt)['"].*\]\s*(\)\s*)?""",
    re.DOTALL,
)
"""Messages that were written into a text: as JSON, or as Python prints them."""


@dataclass
class Conversation:
    """One row after conversion: messages, or plain `text`; `repairs` names what was mended."""

    messages: list[Message] = field(default_factory=list)
    tools: Tools | None = None
    text: str | None = None
    repairs: list[str] = field(default_factory=list)
    unread: list[tuple[str, Any]] = field(default_factory=list)
    """Name and value of what the converter did not read; see `Fields.unread`."""

    def thoughts(self) -> list[str]:
        """The reasoning in it."""
        return [each["reasoning_content"] for each in self.messages if each.get("reasoning_content")]

    def texts(self) -> list[str]:
        """What it says, an Alpaca question in its two halves."""
        if self.text is not None:
            return [self.text]
        halves = (
            [each["instruction"], each["input"]] if "input" in each else [each["content"]] for each in self.messages
        )
        return [text for texts in halves for text in texts]


@dataclass(frozen=True)
class Columns:
    """Names of the columns that play a part; `context` is further input to the question (Dolly)."""

    prompt: str
    response: str
    system: str | None = None
    context: str | None = None


Converter = Callable[[Fields], Conversation]


def convert(row: dict[str, Any], converter: Converter, padded: Iterable[str] = ()) -> Conversation:
    """Convert and settle one row.

    Args:
        padded: see `RawRow.padded`.

    Raises:
        RejectedRow: with the reason, when the row cannot be trained on.
    """
    fields = Fields(row, padded)
    try:
        conversation = converter(fields)
        refuse_marked_row(fields)
        refuse_media(fields, conversation.texts())
        conversation.unread = list(fields.unread())
    except RecursionError as error:
        raise RejectedRow("wrong_type", "nested too deeply") from error
    if conversation.text is None:
        conversation.messages, repairs = settle(conversation.messages)
        conversation.repairs += repairs
    return conversation


def from_alpaca(row: Fields) -> Conversation:
    """Stanford Alpaca. The user turn keeps `instruction` and `input` apart, for the Alpaca text template."""
    if not is_blank(row.peek("history")) and not _is_history(row.peek("history")):
        raise RejectedRow("wrong_type", "history is not a list of [question, answer]")
    before = [*_system(row), *_history(row)]
    asked, repairs = _asked(row, "instruction", "input")
    return Conversation([*before, *asked, _answer(row, "output")], _tools_beside(row), repairs=repairs)


def from_columns(row: Fields, columns: Columns) -> Conversation:
    """A question column and an answer column, and what ms-swift has beside them: `history`, as in Alpaca."""
    before = [*_system(row, *([columns.system] if columns.system else [])), *_history(row)]
    asked, repairs = _asked(row, columns.prompt, columns.context)
    return Conversation([*before, *asked, _answer(row, columns.response)], _tools_beside(row), repairs=repairs)


def from_chatml(row: Fields) -> Conversation:
    """OpenAI's messages; a system prompt may stand beside them. For marks such as `train`, see `marks.py`."""
    return _from_messages(row, "messages")


def from_sharegpt(row: Fields) -> Conversation:
    """ShareGPT's from/value turns, tools included; a system prompt may stand beside them."""
    is_named_messages = is_blank(row.peek("conversations")) and "messages" in row
    return _from_messages(row, "messages" if is_named_messages else "conversations")


def from_prompt_completion(row: Fields) -> Conversation:
    """TRL's prompt and completion. With message lists, only answers in the completion are trained."""
    tools = _tools(row)
    prompt, repairs = _asked(row, "prompt", None, tools)
    if _is_turns(row.peek("completion")):
        completion, more = _messages(row, "completion", tools)
        return Conversation([*_system_beside(row, prompt), *prompt, *completion], tools, repairs=repairs + more)
    return Conversation([*_system_beside(row, prompt), *prompt, _answer(row, "completion")], tools, repairs=repairs)


def from_text(row: Fields) -> Conversation:
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


def _from_messages(row: Fields, column: str) -> Conversation:
    tools = _tools(row)
    messages, repairs = _messages(row, column, tools)
    return Conversation([*_system_beside(row, messages), *messages], tools, repairs=repairs)


def _asked(row: Fields, column: str, extra: str | None, tools: Tools | None = None) -> tuple[list[Message], list[str]]:
    """A question, or the messages before the answer; earlier answers in them are not learned."""
    if not _is_turns(row.peek(column)):
        question, repairs = _question(row, column, extra)
        return [question], repairs
    messages, _ = _messages(row, column, tools)
    for message in messages:
        if message["role"] == "assistant":
            message["train"] = False
    return messages, []


def _question(row: Fields, prompt: str, extra: str | None) -> tuple[Message, list[str]]:
    instruction = required_text(row, prompt, reason="empty_prompt")
    value = row.get(extra) if extra else None
    given = as_text(value, extra or "")
    if PLACEHOLDER_INPUT.fullmatch(given.strip()):
        repairs = ["placeholder_input"] if given.strip() or value != value else []
        return {"role": "user", "content": instruction}, repairs
    content = f"{instruction}\n\n{given}"
    return {"role": "user", "content": content, "instruction": instruction, "input": given}, []


def _answer(row: Fields, column: str) -> Message:
    answer = required_text(row, column, reason="empty_answer")
    if PLACEHOLDER_OUTPUT.fullmatch(answer.strip()):
        raise RejectedRow("empty_answer", f"{column} is {answer.strip()!r}")
    return {"role": "assistant", "content": answer}


def _system(row: Fields, *columns: str) -> list[Message]:
    """The system message of the columns, by default of those known by name, of which the first with a value counts."""
    column = next((each for each in columns or SYSTEM_COLUMNS if not is_blank(row.peek(each))), None)
    text = as_text(row.get(column), column) if column else ""
    return [{"role": "system", "content": text}] if text.strip() else []


def _system_beside(row: Fields, messages: list[Message]) -> list[Message]:
    """The same, for a row whose messages may begin with it already."""
    system = _system(row)
    return [] if system and system[0] == messages[0] else system


def _history(row: Fields) -> list[Message]:
    """Turns before the question, [question, answer] each. A `history` of another shape is left unread."""
    if not _is_history(row.peek("history")):
        return []
    roles = ("user", "assistant")
    pairs = row.get("history")
    return [
        {"role": role, "content": as_text(text, "history")}
        for pair in pairs
        for role, text in zip(roles, pair, strict=True)
    ]


def _is_history(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)


def _tools(row: Fields) -> Tools | None:
    """The row's tools; `functions` is what OpenAI called them before."""
    column = "functions" if is_blank(row.peek("tools")) and "functions" in row else "tools"
    return as_tools(row.get(column), padded=column in row.padded)


def _tools_beside(row: Fields) -> Tools | None:
    """The tools beside a question and an answer (xLAM, LLaMA-Factory); a column of that name may be something else."""
    try:
        tools = as_tools(row.peek("tools"), padded="tools" in row.padded)
    except RejectedRow:
        return None
    row.get("tools")
    return tools


def _messages(row: Fields, column: str, tools: Tools | None) -> tuple[list[Message], list[str]]:
    turns = row.get(column)
    if isinstance(turns, str) and WRITTEN_TURNS.fullmatch(turns):
        turns = written_turns(turns, column)
    if is_blank(turns):
        raise RejectedRow("missing_field", column)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RejectedRow("wrong_type", f"{column} is not a list of messages")
    padded = column in row.padded
    messages: list[Message] = []
    marked: set[bool | None] = set()
    for number, turn in enumerate(turns):
        fields, place = row.inner(f"{column}[]", turn), f"{column}[{number}]"
        message = _message(fields, place, tools, padded)
        messages.append(message)
        learned = None if fields.has_only(PLAIN) else trains(fields, message["role"], place)
        if message["role"] == "assistant":
            marked.add(learned)
            if learned is False:
                message["train"] = False
    return messages, ["unmarked_learned"] if {True, None} <= marked else []


def written_turns(text: str, column: str) -> Any:
    """Messages that were written into a text as JSON.

    Raises:
        RejectedRow: not JSON, but for instance what Python prints.
    """
    try:
        return as_json(text, column)
    except RejectedRow as error:
        what = f"{column} holds messages as text that is not JSON ({error.detail}); write them with json.dumps"
        raise RejectedRow("wrong_type", what) from error


def _is_turns(value: object) -> bool:
    """Whether a value is a list of messages, or one that was written into a text."""
    if isinstance(value, str):
        return WRITTEN_TURNS.fullmatch(value) is not None
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)


def _message(turn: Fields, place: str, tools: Tools | None, padded: bool) -> Message:
    """One turn with either role/content or from/value keys."""
    speaker = turn.get("role") or turn.get("from")
    key = "value" if turn.peek("content") is None and "value" in turn else "content"
    name = speaker.strip().lower() if isinstance(speaker, str) else ""
    if name not in ROLE_OF:
        there = f" (it has {', '.join(list(turn)[:8])})" if speaker is None else ""
        raise RejectedRow("unknown_role", f"{place}: {speaker!r}{there}")
    if name == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": as_tool_calls(turn.get(key), turn, tools)}
    message: Message = {"role": ROLE_OF[name], "content": content_text(turn, key, place)}
    if thought := reasoning_text(turn, key, place):
        message["reasoning_content"] = thought
    if turn.has_only(PLAIN):
        return message
    refuse_media(turn, [], place)
    calls = "function_call" if is_blank(turn.peek("tool_calls")) else "tool_calls"  # OpenAI's, before there were tools
    if message["role"] == "assistant" and not is_blank(turn.peek(calls)):
        message["tool_calls"] = as_tool_calls(turn.get(calls), turn, tools, padded=padded)
    elif key not in turn and (alike := next((each for each in turn if each.strip().lower() in CONTENTS), None)):
        raise RejectedRow("missing_field", f"{place}.content (it has {alike!r})")
    for more in ("name", "tool_call_id"):
        if turn.get(more) is not None:
            message[more] = as_text(turn.get(more), f"{place}.{more}")
    return message
