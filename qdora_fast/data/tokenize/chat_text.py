"""The one door to a chat template: a conversation in, its text out. All that renders goes through `render_chat`.

Transformers renders, with the template that it picks itself where there are several (`tool_use` for rows with tools).
Two things are added. Templates disagree on how a message says its things: the arguments of a tool call as an object or
as JSON text, reasoning under `reasoning_content`, `reasoning` or `thinking`, ids of calls of any length or of nine
letters alone. What a template takes is tried out on it once (`_form_of`), and messages are handed over in that form.
And a template that asks for the clock is told one `date`, so that a row is the same tokens on every day; without a date
it gets the time of the day, as from any server.

A template that takes content as a list of parts alone (those for images) prints none of our texts, and is refused.
What a template computes has limits, which `template_process.py` keeps.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any

from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.read.messages import Message
from qdora_fast.data.tokenize.template_process import BeyondLimits, check_limits, render
from qdora_fast.system.errors import ConfigError, first_line
from qdora_fast.system.limits import TEMPLATE_CHARACTERS

CLOCK = "strftime_now"
"""The function by which Transformers lets a template ask for the time."""
_REASONING = ("reasoning_content", "reasoning", "thinking")

Tools = list[dict[str, Any]] | None


def render_chat(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Tools = None,
    *,
    add_generation_prompt: bool = False,
    date: str | None = None,
    switches: Mapping[str, Any] | None = None,
) -> str:
    """The text of a conversation by the tokenizer's chat template.

    Args:
        date: the day that a template is told which asks for the clock, as 2026-01-31; None: the time now.
        switches: variables that turn its thinking on or off, see `thinking.py`; None: as it was before there were any.

    Raises:
        RejectedRow: `template_error` with the template's own words.
    """
    text = template_for(tokenizer, tools)
    if not messages or not text:
        raise RejectedRow("template_error", "there is no " + ("chat template" if messages else "message"))
    given = {
        "messages": as_taken(tokenizer, messages, tools, parts=switches is not None),
        "tools": tools or None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        **tokenizer.special_tokens_map,
        **({CLOCK: _clock(date)} if date else {}),
        **(switches or {}),
    }
    return render(text, given)


def as_taken(tokenizer: Any, messages: Sequence[Message], tools: Tools = None, *, parts: bool = True) -> list[Message]:
    """The messages in the form that the chat template takes; what all templates take alike is handed on as it is.

    Args:
        parts: whether reasoning may become a part of the content, for templates that take it so (Magistral).
    """
    special = json.dumps(tokenizer.special_tokens_map, default=str)
    form = _form_of(template_for(tokenizer, tools), special, parts)
    return list(messages) if form == _Form() else form.applied(messages)


def templates_of(tokenizer: Any) -> dict[str, str]:
    """The chat templates of a tokenizer by name: `default` alone for most, {} where it has none."""
    given = tokenizer.chat_template
    named = given if isinstance(given, Mapping) else {"default": given}
    return {name: text for name, text in sorted(named.items()) if text}


def template_for(tokenizer: Any, tools: Tools = None) -> str:
    """The template with which Transformers renders a conversation with these tools; "" where there is none."""
    named = templates_of(tokenizer)
    return named.get("tool_use" if tools and "tool_use" in named else "default", "")


def rendered(text: str, messages: Sequence[Message], **variables: Any) -> str | None:
    """What a template makes of messages in the form that they have, to see what it does; None where it refuses.

    Raises:
        ConfigError: it computes too much.
    """
    given = {"bos_token": "<s>", "eos_token": "</s>", CLOCK: _clock("2001-02-03")} | variables
    usual = {"messages": list(messages), "tools": None, "documents": None, "add_generation_prompt": False}
    try:
        return render(text, usual | given)
    except BeyondLimits as error:
        raise ConfigError(f"the chat template: {error.detail}") from error
    except RejectedRow:
        return None


def asks_for_clock(tokenizer: Any) -> bool:
    """Whether a chat template of the tokenizer asks for the time; it need not do so for every conversation."""
    return any(CLOCK in names_in(text) for text in templates_of(tokenizer).values())


def today() -> str:
    """The day it is, as 2026-01-31."""
    return datetime.now().date().isoformat()


def check_template(text: str, name: str) -> None:
    """Raise ConfigError for a template that is no Jinja, computes too much, or says something else each time.

    Args:
        name: of the template, for the message.
    """
    from jinja2 import TemplateSyntaxError, nodes

    check_limits(text, name)
    try:
        tree = _parsed(text)
    except TemplateSyntaxError as error:
        raise ConfigError(f"{name}:{error.lineno}: {error.message}") from error
    drawn = [each.name for each in tree.find_all(nodes.Filter) if each.name == "random"]
    drawn += [each.name for each in tree.find_all(nodes.Name) if each.name == "lipsum"]
    if drawn:
        raise ConfigError(
            f"{name} prints something else each time (it uses `{drawn[0]}`), so that no export could be proven and no "
            "server would ask as was trained; write a .jinja file without it, and name it in data.template"
        )


@dataclass(frozen=True)
class _Form:
    """How a template takes what a message says."""

    arguments: str = "object"
    """object, or text: JSON."""
    reasoning: str = _REASONING[0]
    """The key of a message, or `parts`: a part of its content."""
    ids: str = "any"
    """any, or nine: letters and digits, and there must be one (Mistral)."""

    def applied(self, messages: Sequence[Message]) -> list[Message]:
        """The messages in this form."""
        return [self._applied(each) for each in (messages if self.ids == "any" else _with_ids(messages))]

    def _applied(self, message: Message) -> Message:
        taken = dict(message)
        if self.arguments == "text" and taken.get("tool_calls"):
            taken["tool_calls"] = [_with_text(call) for call in taken["tool_calls"]]
        if self.reasoning != _REASONING[0] and _REASONING[0] in taken:
            thought = taken.pop(_REASONING[0])
            as_parts = [{"type": "thinking", "thinking": thought}, {"type": "text", "text": taken["content"]}]
            taken |= {"content": as_parts} if self.reasoning == "parts" else {self.reasoning: thought}
        return taken


def _with_ids(messages: Sequence[Message]) -> Iterator[Message]:
    """Messages whose calls all have ids of nine letters and digits; a result without one gets that of its call."""
    waiting: list[str] = []
    calls = 0
    for message in messages:
        if message.get("tool_calls"):
            waiting = [_nine(call.get("id") or str(calls + n)) for n, call in enumerate(message["tool_calls"])]
            calls += len(waiting)
            named = [{**call, "id": each} for call, each in zip(message["tool_calls"], waiting, strict=True)]
            yield {**message, "tool_calls": named}
        elif message["role"] == "tool":
            given = waiting.pop(0) if waiting else _nine("")
            own = message.get("tool_call_id")
            yield {**message, "tool_call_id": _nine(own) if own else given}
        else:
            yield message


def _nine(identity: str) -> str:
    return identity if re.fullmatch("[A-Za-z0-9]{9}", identity) else sha256(identity.encode()).hexdigest()[:9]


def _with_text(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        return dict(call)
    return {**call, "function": {**function, "arguments": json.dumps(arguments, ensure_ascii=False)}}


@lru_cache(maxsize=32)
def _form_of(text: str, special: str, parts: bool) -> _Form:
    """Try out which form a template prints; one that prints none gets the usual.

    Args:
        special: the tokenizer's special tokens by name, as JSON.
        parts: see `as_taken`.
    """
    tokens = json.loads(special)

    def printed(form: _Form, messages: Sequence[Message]) -> str:
        return rendered(text, form.applied(messages), **tokens) or ""

    form = _Form()
    if not text:
        return form
    for key in (*_REASONING, *(("parts",) if parts else ())):
        made = printed(replace(form, reasoning=key), _THOUGHT)
        if "qfthought" in made and "'qfthought'" not in made:
            form = replace(form, reasoning=key)
            break
    form = replace(form, arguments=_arguments_form(form, printed))
    for messages in (_CALLED, _CALLED[:-2]):
        longer = json.loads(json.dumps(messages).replace("qfcall001", "call_1"))
        if printed(form, messages) and not printed(form, longer):
            form = replace(form, ids="nine")
    return form


def _arguments_form(form: _Form, printed: Callable[[_Form, Sequence[Message]], str]) -> str:
    """`text` for a template that fails on an object, or prints it as Python would, and prints JSON text as it is."""
    as_text = replace(form, arguments="text")
    for messages in (_CALLED, _CALLED[:-2]):
        usual, other = printed(form, messages), printed(as_text, messages)
        if '{"qfkey": "qfvalue"}' in other and ("qfvalue" not in usual or "{'qfkey'" in usual):
            return "text"
        if usual:
            break
    return "object"


_PLAIN: list[Message] = [{"role": "user", "content": "qfquestion"}, {"role": "assistant", "content": "qfanswer"}]
_THOUGHT: list[Message] = [_PLAIN[0], _PLAIN[1] | {"reasoning_content": "qfthought"}]
_CALL: dict[str, Any] = {
    "id": "qfcall001",
    "type": "function",
    "function": {"name": "qfname", "arguments": {"qfkey": "qfvalue"}},
}
_CALLED: list[Message] = [
    _PLAIN[0],
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "content": "qfresult", "name": "qfname", "tool_call_id": "qfcall001"},
    _PLAIN[1],
]


def _clock(day: str) -> Callable[[str], str]:
    """`strftime_now` as it answers at midnight of a day."""
    return datetime.fromisoformat(day).strftime


@lru_cache(maxsize=32)
def names_in(text: str) -> frozenset[str]:
    """All names in a template; {} of one that is no Jinja."""
    from jinja2 import TemplateSyntaxError, nodes

    try:
        return frozenset(name.name for name in _parsed(text).find_all(nodes.Name))
    except TemplateSyntaxError:
        return frozenset()


def compared_with(text: str, name: str) -> frozenset[Any]:
    """The constants with which a template compares a variable; {} of one that is no Jinja."""
    from jinja2 import TemplateSyntaxError, nodes

    try:
        compared = list(_parsed(text).find_all(nodes.Compare))
    except TemplateSyntaxError:
        return frozenset()
    named = [each for each in compared if any(name == part.name for part in each.find_all(nodes.Name))]
    return frozenset(constant.value for each in named for constant in each.find_all(nodes.Const))


def _parsed(text: str) -> Any:
    """The tree of a template, read as Transformers does, with its own tags ({% generation %}).

    Raises:
        TemplateSyntaxError: it is no Jinja, or too much of it.
    """
    from jinja2 import TemplateSyntaxError

    try:
        return _environment().parse(text[: TEMPLATE_CHARACTERS + 1])
    except (RecursionError, ValueError, OverflowError) as error:  # of brackets, of digits
        raise TemplateSyntaxError(first_line(error), 1) from error


@lru_cache(maxsize=1)
def _environment() -> Any:
    """The Jinja that Transformers renders with, with its own tags ({% generation %})."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template("").environment
