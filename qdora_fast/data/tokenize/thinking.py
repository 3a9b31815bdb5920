"""What a chat template does about reasoning: its switch, what it prints, and the marks around it, found by asking it.

Templates say it in many ways: `enable_thinking` (Qwen, SmolLM, GLM, EXAONE, Gemma, Nemotron), `thinking` (Granite,
DeepSeek), `reasoning_effort`, budgets; <think> opened by the generation prompt, an empty block in it, channels instead
of tags. So no family is named here. A switch is a known name that the template reads and whose values change the
generation prompt; a mark is what stands around a sentinel. `thinking_of` gives None for a template without any of it.

What a template only obeys in the words of a conversation (/no_think in a system message) is no switch: it is in the
rows, and stays there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from qdora_fast.data.read.messages import Message
from qdora_fast.data.tokenize.chat_text import compared_with, names_in, rendered, templates_of
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
LAST_TAG = re.compile(r"(<[^<>\s/][^<>\s]{0,40}>|\[[A-Z_]{1,40}\])\s*\Z")
_BLOCK = (f"{OPENS}\n", f"\n{CLOSES}\n\n")
_EMPTY = re.compile(rf"({OPENS}\n?)(\n?{CLOSES}\s*)\Z")
_THINKS = re.compile(r"think|thought|reason", re.IGNORECASE)
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
    block: tuple[str, str] | None = None
    """What is put around reasoning to write it into a content, for a template that reads it nowhere and speaks of
    <think>: in an empty block of its prompt (SmolLM3), or in its instruction (Granite 3.3)."""
    completed: bool = False
    """Whether the generation prompt opens reasoning that answers do not print, so that they are completed here."""
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


def in_words(switches: Switches) -> str:
    """What a template is told, for the user: `enable_thinking: false`."""
    return ", ".join(f"{name}: {json.dumps(value)}" for name, value in switches.items())


@lru_cache(maxsize=32)
def thinking_of(template_text: str) -> Thinking | None:
    """What a chat template does about reasoning, None: nothing. `template_text` is its Jinja source."""
    if not template_text or not _THINKS.search(template_text):
        return None
    switch = next(_switches_of(template_text), None) or _Switch()
    prompt = _render(template_text, [_QUESTION], switch.on, prompt=True)
    bare = _render(template_text, [_QUESTION, _ANSWER], switch.on)
    thought = _with_thought(template_text, switch.on)
    tag = LAST_TAG.search(prompt)
    opened = tag is not None and _THINKS.search(tag[1]) is not None
    if not (switch.name or thought or opened):
        return None
    completed = opened and not thought and bool(bare) and not bare.startswith(prompt)
    opens, closes = _marks(prompt, thought, tag[1] if tag and opened else "")
    spelled = _spelled(template_text, switch.on)
    off_prompt = _render(template_text, [_QUESTION], switch.off, prompt=True)
    off_bare = _render(template_text, [_QUESTION, _ANSWER], switch.off)
    block = None
    if switch.name and not thought and spelled == "printed":
        empty = _EMPTY.search(off_prompt)
        block = (empty[1], empty[2]) if empty else _BLOCK if CLOSES in template_text else None
    leads = {_between(prompt, bare, "qfanswer"), _between(off_prompt, off_bare, "qfanswer")} - {""}
    return Thinking(
        switch=switch.name,
        on=switch.on,
        off=switch.off,
        default=switch.default,
        prints=bool(thought or completed or block),
        spelled=spelled,
        opened=opened,
        opens=opens,
        closes=closes,
        block=block,
        completed=completed,
        leads=tuple(sorted(leads, key=len, reverse=True)),
    )


def thinks(tokenizer: Any) -> Thinking | None:
    """What the tokenizer's chat template does about reasoning; None: nothing, or it has none."""
    return next(filter(None, map(thinking_of, templates_of(tokenizer).values())), None)


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
    parts = [{"type": "thinking", "thinking": _THOUGHT}, {"type": "text", "text": "qfanswer"}]
    forms: list[Message] = [{key: _THOUGHT} for key in ("reasoning_content", "reasoning", "thinking")]
    for form in (*forms, {"content": parts}):
        made = _render(text, [_QUESTION, _ANSWER | form], switches)
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
