"""The mode in which a conversation is rendered: told to think or not to, or as it was before templates were asked.

`in_mode_of` puts a conversation into the mode that it is learned in: with reasoning where its last answer has any,
without where it has none, so that what is learned begins where the generation prompt of that mode ends. A template
whose prompt opens <think> and whose answers leave it out (DeepSeek-R1) is completed: reasoning and answer are put
behind the prompt, as a server has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qdora_fast.data.read.messages import Message
from qdora_fast.data.tokenize.chat_text import Tools, render_chat, template_for
from qdora_fast.data.tokenize.spans import shared_length
from qdora_fast.data.tokenize.thinking import CLOSES, LAST_TAG, OPENS, Mode, Switches, Thinking, thinking_of

Setting = Literal["auto", "on", "off", "as_is"]
"""Of `data.thinking`."""
_SPELLED = re.compile(rf"\s*{OPENS}(.*?){CLOSES}\s*", re.DOTALL)
_HALF = re.compile(rf"(.*?){CLOSES}\s*", re.DOTALL)


@dataclass(frozen=True)
class RenderMode:
    """How a conversation is rendered: told to think or not to, or as it was before templates were asked."""

    thinking: Thinking | None = None
    mode: Mode | None = None

    @property
    def switches(self) -> Switches | None:
        """What is given to the template; None: nothing, as before."""
        return self.thinking.switches(self.mode) if self.thinking and self.mode else None

    def render(
        self,
        tokenizer: Any,
        messages: Sequence[Message],
        tools: Tools = None,
        *,
        add_generation_prompt: bool = False,
        date: str | None = None,
    ) -> str:
        """The text of a conversation, see `render_chat`."""

        def text_of(these: Sequence[Message], *, prompt: bool = False) -> str:
            return render_chat(tokenizer, these, tools, add_generation_prompt=prompt, date=date, switches=self.switches)

        text = text_of(messages, prompt=add_generation_prompt)
        ends_with_answer = bool(messages) and messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]
        if self.mode and self.thinking and self.thinking.completed and ends_with_answer and not add_generation_prompt:
            return _completed(text, messages, self.thinking, text_of)
        return text


AS_IS = RenderMode()


def in_mode_of(
    tokenizer: Any, messages: Sequence[Message], tools: Tools, setting: Setting
) -> tuple[list[Message], RenderMode]:
    """A conversation and how it is rendered under `data.thinking`. Reasoning lies where the template reads it; under
    `off` there is none."""
    thinking = None if setting == "as_is" else thinking_of(template_for(tokenizer, tools))
    if thinking is None:
        return list(messages), AS_IS
    asked = in_fields(messages, thinking)
    if setting == "auto":
        return asked, RenderMode(thinking, "on" if asks_to_think(asked, thinking) else "off")
    if setting == "on":
        return asked, RenderMode(thinking, "on")
    return without_reasoning(asked, thinking), RenderMode(thinking, "off")


def answer_of(message: Message, thinking: Thinking | None) -> str:
    """What an answer says to the question: its content without reasoning that is spelled out in it."""
    found = spelled_out(message["content"], thinking)
    return found[1] if found else str(message["content"])


def spelled_out(content: str, thinking: Thinking | None = None) -> tuple[str, str] | None:
    """(reasoning, answer) of a content that begins with <think>...</think>, or with the template's own tags; None for
    any other."""
    match = _SPELLED.match(content)
    if match is None and thinking and LAST_TAG.fullmatch(thinking.opens):
        own = rf"\s*{re.escape(thinking.opens)}(.*?){re.escape(thinking.closes)}\s*"
        match = re.match(own, content, re.DOTALL)
    if match is None and thinking and _is_half(content):
        match = _HALF.match(content)
    return (match[1].strip(), content[match.end() :]) if match else None


def has_reasoning(message: Message, thinking: Thinking) -> bool:
    """Whether a template can print reasoning of this message."""
    if thinking.prints and str(message.get("reasoning_content") or "").strip():
        return True
    head, mark, _ = message["content"].partition(CLOSES)
    if message["role"] != "assistant" or not mark or thinking.spelled == "dropped":
        return False
    begins = head.lstrip().startswith(OPENS) or (thinking.spelled == "read" and OPENS not in head)
    return begins and bool(head.replace(OPENS, "").strip())


def asks_to_think(messages: Sequence[Message], thinking: Thinking) -> bool:
    """Whether an answer to the last question comes with reasoning."""
    last = max((i for i, each in enumerate(messages) if each["role"] == "user"), default=-1)
    return any(has_reasoning(each, thinking) for each in messages[last + 1 :] if each["role"] == "assistant")


def in_fields(messages: Sequence[Message], thinking: Thinking) -> list[Message]:
    """Messages whose reasoning lies where a template prints it: what is spelled out in contents in its own field, or
    the other way round."""
    if not thinking.prints:
        return list(messages)
    if thinking.spelled == "read":
        return [_opened(each) for each in messages]
    if thinking.block:
        return [_written(each, *thinking.block) for each in messages]
    return [_in_field(each, thinking) for each in messages]


def without_reasoning(messages: Sequence[Message], thinking: Thinking) -> list[Message]:
    """Messages that say nothing of their reasoning, in either form; the same objects where they did not."""
    return [_without(each, thinking) if each["role"] == "assistant" else each for each in messages]


def _in_field(message: Message, thinking: Thinking) -> Message:
    found = spelled_out(message["content"], thinking) if message["role"] == "assistant" else None
    if found is None or message.get("reasoning_content"):
        return message
    thought = {"reasoning_content": found[0]} if found[0] else {}
    return message | thought | {"content": found[1]}


def _opened(message: Message) -> Message:
    """The message with <think> before reasoning that only ends in its content."""
    if message["role"] != "assistant" or not _is_half(message["content"]):
        return message
    return message | {"content": f"{OPENS}\n{message['content']}"}


def _is_half(content: str) -> bool:
    """Whether it is what a model wrote behind a prompt that opened its reasoning: with </think>, without <think>."""
    head, mark, tail = content.partition(CLOSES)
    return bool(mark and head.strip()) and OPENS not in content and CLOSES not in tail


def _written(message: Message, opens: str, closes: str) -> Message:
    """The message with its reasoning in its content."""
    thought = str(message.get("reasoning_content") or "").strip("\n")
    if message["role"] != "assistant" or not thought.strip() or spelled_out(message["content"]):
        return message
    kept = {key: value for key, value in message.items() if key != "reasoning_content"}
    return kept | {"content": f"{opens}{thought}{closes}{message['content']}"}


def _without(message: Message, thinking: Thinking) -> Message:
    found = spelled_out(message["content"], thinking)
    if found is None and "reasoning_content" not in message:
        return message
    kept = {key: value for key, value in message.items() if key != "reasoning_content"}
    return kept if found is None else kept | {"content": found[1]}


def _completed(text: str, messages: Sequence[Message], thinking: Thinking, text_of: Callable[..., str]) -> str:
    """The text of a conversation whose last answer, with its reasoning, stands behind the generation prompt."""
    *before, answer = messages
    place = "\ue000"
    bare = {key: value for key, value in answer.items() if key != "reasoning_content"} | {"content": place}
    prompt, empty = text_of(before, prompt=True), text_of([*before, bare])
    shared = shared_length(prompt, empty)
    if not empty.startswith(place, shared):
        return text
    thought = str(answer.get("reasoning_content") or "").strip("\n")
    return f"{prompt}{thought}\n{thinking.closes}\n\n{answer['content']}{empty[shared + len(place) :]}"
