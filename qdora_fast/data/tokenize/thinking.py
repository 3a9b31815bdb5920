"""What a chat template does about reasoning: its switch, what it prints, and the marks around it, found by asking it.

Templates say it in many ways: `enable_thinking` (Qwen, SmolLM, GLM, EXAONE, Gemma, Nemotron), `thinking` (Granite,
DeepSeek), `reasoning_effort`, budgets; <think> opened by the generation prompt, an empty block in it, channels instead
of tags. So no family is named here. A switch is a known name that the template reads and whose values change the
generation prompt; a mark is what stands around a sentinel. `thinking_of` gives None for a template without any of it.

What a template only obeys in the words of a conversation (/no_think in a system message) is no switch: it is in the
rows, and stays there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from qdora_fast.data.read.messages import Message
from qdora_fast.data.tokenize.chat_text import compared_with, names_in, rendered
from qdora_fast.data.tokenize.spans import shared_length

Mode = Literal["on", "off"]
Switches = Mapping[str, Any]
"""Variables that are given to a template, as `chat_template_kwargs` has them."""

SWITCHES = (
    *("enable_thinking", "thinking", "enable_reasoning", "reasoning", "use_thinking", "think"),
    *("thinking_mode", "reasoning_mode", "thinking_effort", "reasoning_effort", "thinking_budget", "reasoning_budget"),
)
"""Names under which templates are told whether to think, those with two values first."""
OPENS, CLOSES = "<think>", "</think>"
"""The marks where a template has none of its own: those that rows spell out."""

_OFF_WORDS = ("off", "none", "disabled", "false", "no", "no_think", "nothink", "no_thinking")
_ON_WORDS = ("on", "enabled", "true", "yes", "high", "medium", "think", "thinking")
_LAST_TAG = re.compile(r"(<[^<>\s/][^<>\s]{0,40}>|\[[A-Z_]{1,40}\])\s*\Z")
_THINKS = re.compile(r"think|thought|reason", re.IGNORECASE)
_SPELLED = re.compile(rf"\s*{OPENS}(.*?){CLOSES}\s*", re.DOTALL)
_QUESTION: Message = {"role": "user", "content": "qfquestion"}
_ANSWER: Message = {"role": "assistant", "content": "qfanswer"}
_THOUGHT = "qfthought"


@dataclass(frozen=True)
class Thinking:
    """What a chat template does about reasoning."""

    switch: str | None = None
    """The variable that turns it on and off; None: there is none, the rows or the model decide."""
    on: Switches = field(default_factory=dict)
    """What to give the template for answers with reasoning; {}: nothing."""
    off: Switches = field(default_factory=dict)
    """The same for answers without."""
    default: Mode = "on"
    """What it does where it is told nothing."""
    prints: bool = False
    """Whether it prints the reasoning of a message, in a form of its own."""
    spelled: Literal["read", "printed", "dropped"] = "printed"
    """What it does about <think>...</think> in a content: takes it for reasoning, prints it as it is, or drops it."""
    opened: bool = False
    """Whether the generation prompt opens the reasoning, so that a model begins inside it."""
    opens: str = OPENS
    closes: str = CLOSES
    leads: tuple[str, ...] = ()
    """What may stand before an answer without reasoning: an empty block, the name of a channel."""

    def switches(self, mode: Mode) -> Switches:
        """What to give the template for this mode."""
        return self.on if mode == "on" else self.off

    @property
    def summary(self) -> str:
        """In a few words, for a plan: `enable_thinking, on by default`."""
        if self.switch:
            return f"{self.switch}, {self.default} by default"
        return "always, there is no switch" if self.opened else "where a row has reasoning, there is no switch"


@lru_cache(maxsize=32)
def thinking_of(template_text: str) -> Thinking | None:
    """What a chat template does about reasoning, None: nothing. `template_text` is its Jinja source."""
    if not template_text or not _THINKS.search(template_text):
        return None
    switch = next(_switches_of(template_text), None) or _Switch()
    prompt = _render(template_text, [_QUESTION], switch.on, prompt=True)
    bare = _render(template_text, [_QUESTION, _ANSWER], switch.on)
    thought = _with_thought(template_text, switch.on)
    tag = _LAST_TAG.search(prompt)
    opened = tag is not None and _THINKS.search(tag[1]) is not None
    if not (switch.name or thought or opened):
        return None
    opens, closes = _marks(prompt, thought, tag[1] if tag and opened else "")
    off_prompt = _render(template_text, [_QUESTION], switch.off, prompt=True)
    off_bare = _render(template_text, [_QUESTION, _ANSWER], switch.off)
    leads = {_between(prompt, bare, "qfanswer"), _between(off_prompt, off_bare, "qfanswer")} - {""}
    return Thinking(
        switch=switch.name,
        on=switch.on,
        off=switch.off,
        default=switch.default,
        prints=bool(thought),
        spelled=_spelled(template_text, switch.on),
        opened=opened,
        opens=opens,
        closes=closes,
        leads=tuple(sorted(leads, key=len, reverse=True)),
    )


def spelled_out(content: str) -> tuple[str, str] | None:
    """(reasoning, answer) of a content that begins with <think>...</think>; None for any other."""
    match = _SPELLED.match(content)
    return (match[1].strip(), content[match.end() :]) if match else None


def has_reasoning(message: Message, thinking: Thinking) -> bool:
    """Whether a template can print reasoning of this message."""
    if thinking.prints and str(message.get("reasoning_content") or "").strip():
        return True
    head, mark, _ = message["content"].partition(CLOSES)
    if not mark or thinking.spelled == "dropped":
        return False
    begins = head.lstrip().startswith(OPENS) or (thinking.spelled == "read" and OPENS not in head)
    return begins and bool(head.replace(OPENS, "").strip())


def asks_to_think(messages: Sequence[Message], thinking: Thinking) -> bool:
    """Whether an answer to the last question comes with reasoning."""
    last = max((i for i, each in enumerate(messages) if each["role"] == "user"), default=-1)
    return any(has_reasoning(each, thinking) for each in messages[last + 1 :] if each["role"] == "assistant")


def in_fields(messages: Sequence[Message], thinking: Thinking) -> list[Message]:
    """Messages in which reasoning that is spelled out lies where a template reads it, if it reads it only there."""
    if not thinking.prints or thinking.spelled == "read":
        return list(messages)
    return [_in_field(each) for each in messages]


def without_reasoning(messages: Sequence[Message]) -> list[Message]:
    """Messages that say nothing of their reasoning, in either form; the same objects where they did not."""
    return [_without(each) if each["role"] == "assistant" else each for each in messages]


def _in_field(message: Message) -> Message:
    found = spelled_out(message["content"]) if message["role"] == "assistant" else None
    if found is None or message.get("reasoning_content"):
        return message
    thought = {"reasoning_content": found[0]} if found[0] else {}
    return message | thought | {"content": found[1]}


def _without(message: Message) -> Message:
    found = spelled_out(message["content"])
    if found is None and "reasoning_content" not in message:
        return message
    kept = {key: value for key, value in message.items() if key != "reasoning_content"}
    return kept if found is None else kept | {"content": found[1]}


@dataclass(frozen=True)
class _Switch:
    """A variable and its values; none without a name."""

    name: str | None = None
    on: Switches = field(default_factory=dict)
    off: Switches = field(default_factory=dict)
    default: Mode = "on"


def _switches_of(text: str) -> Iterator[_Switch]:
    """Variables whose values change the generation prompt."""
    named = names_in(text)
    untold = _prompts(text, {})
    for name in SWITCHES:
        if name not in named:
            continue
        for on, off in _values(name, compared_with(text, name)):
            asked, unasked = _prompts(text, on), _prompts(text, off)
            if all(asked) and all(unasked) and asked != unasked:
                yield _Switch(name, on, off, "off" if untold == unasked else "on")


def _values(name: str, constants: frozenset[Any]) -> Iterator[tuple[Switches, Switches]]:
    """Pairs of (on, off) that a variable may have: words only where the template compares it with them."""
    words = [word for word in _OFF_WORDS if word in constants]
    if name.endswith("budget"):
        yield {}, {name: 0}
    elif not name.endswith(("mode", "effort")):
        yield {name: True}, {name: False}
    for off in words:
        on = next((word for word in _ON_WORDS if word in constants), None)
        yield ({name: on} if on else {}), {name: off}


def _prompts(text: str, switches: Switches) -> tuple[str, str]:
    """What a template asks, without and with a system message; "" where it does not take that."""
    system: Message = {"role": "system", "content": "qfsystem"}
    plain = _render(text, [_QUESTION], switches, prompt=True)
    return plain, _render(text, [system, _QUESTION], switches, prompt=True) or plain


def _with_thought(text: str, switches: Switches) -> str:
    """The text of an answer with reasoning, "" where it is not printed."""
    for key in ("reasoning_content", "reasoning", "thinking", None):
        thought = {"thinking": _THOUGHT} if key is None else {key: _THOUGHT}
        answer = _ANSWER | thought
        if key is None:
            answer = _ANSWER | {"content": [{"type": "thinking", **thought}, {"type": "text", "text": "qfanswer"}]}
        made = _render(text, [_QUESTION, answer], switches)
        if _THOUGHT in made and f"'{_THOUGHT}'" not in made and "qfanswer" in made.partition(_THOUGHT)[2]:
            return made
    return ""


def _marks(prompt: str, thought: str, tag: str) -> tuple[str, str]:
    """What opens reasoning and what stands between it and its answer."""
    if not thought:
        return (tag, re.sub(r"^(.)", r"\1/", tag)) if tag else (OPENS, CLOSES)
    before, _, after = thought.partition(_THOUGHT)
    written = before[shared_length(before, prompt) :].strip()
    return tag or written or OPENS, after.partition("qfanswer")[0].strip() or CLOSES


def _between(prompt: str, text: str, mark: str) -> str:
    """What is written between a prompt and a mark in the text that follows it, without blanks around it."""
    return text[len(prompt) :].partition(mark)[0].strip() if prompt and text.startswith(prompt) else ""


def _spelled(text: str, switches: Switches) -> Literal["read", "printed", "dropped"]:
    """What becomes of <think>...</think> in a content."""
    content = f"{OPENS}\n{_THOUGHT}\n{CLOSES}\n\nqfanswer"
    made = _render(text, [_QUESTION, _ANSWER | {"content": content}], switches)
    if _THOUGHT not in made:
        return "dropped"
    usual = _render(text, [_QUESTION, _ANSWER | {"reasoning_content": _THOUGHT}], switches)
    earlier = _render(text, [_QUESTION, _ANSWER | {"content": content}, _QUESTION, _ANSWER], switches)
    return "read" if made == usual or _THOUGHT not in earlier else "printed"


def _render(text: str, messages: Sequence[Message], switches: Switches, *, prompt: bool = False) -> str:
    """The text that a template makes, "" where it refuses."""
    return rendered(text, messages, add_generation_prompt=prompt, **switches) or ""
