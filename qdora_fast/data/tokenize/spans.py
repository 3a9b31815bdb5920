"""Where the answers stand in the text of a conversation: the half of masking that needs no tokens.

The template is a black box that is only ever asked to render: the conversation itself, the conversation with a
sentinel for every answer, the conversation up to a turn with the generation prompt. What these texts share
and where they part shows the structure, for any template, without knowing its markers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.read.messages import Message

if TYPE_CHECKING:
    from qdora_fast.data.tokenize.vocabulary import Vocabulary

END_OF_THINKING = "</think>"


class RenderedChat:
    """A conversation's `text`, and `spans`: the character range of each answer in it, by message index.

    `spans` is empty when the template rewrites answers, so that they cannot be laid along the text.

    Raises:
        RejectedRow: template_error, when the template refuses the conversation.
    """

    def __init__(self, messages: list[Message], tools: list[dict[str, Any]] | None, vocabulary: Vocabulary) -> None:
        self.messages, self.tools, self.vocabulary = messages, tools, vocabulary
        self.text = vocabulary.render(messages, tools)
        self.leaves_prompt: set[int] = set()
        """Messages whose text leaves the prompt that a server would have for them; those that were asked about."""
        self.spans = self._answer_spans()

    def hand_over(self, index: int, content_start: int | None) -> int | None:
        """Character at which inference would start to write message `index`; None when the text disagrees."""
        before = self.messages[:index]
        try:
            prompt = self.vocabulary.render(before, self.tools, add_generation_prompt=True)
            if self.text.startswith(prompt):
                return len(prompt)
            forgotten = self._prompt_without_reasoning(before)
            if forgotten and self.text.startswith(forgotten):
                return len(forgotten)
            self.leaves_prompt.add(index)
            shared = shared_length(prompt, self.text)
            question_end = shared_length(prompt, self.vocabulary.render(before, self.tools))
        except RejectedRow:  # templates may refuse a conversation without an answer
            return None
        # The text may leave the generation prompt (an opened <think>), but must not leave it before it begins.
        agrees = shared >= question_end and (content_start is None or shared <= content_start)
        return shared if agrees else None

    def _prompt_without_reasoning(self, before: list[Message]) -> str:
        """The prompt once earlier reasoning is forgotten: some templates forget that of a call when its answer is there
        (gpt-oss), and many clients send none back. "" where templates are not asked about thinking."""
        bare = self.vocabulary.without_reasoning(before)
        return "" if bare == before else self.vocabulary.render(bare, self.tools, add_generation_prompt=True)

    def up_to(self, index: int) -> str:
        """The conversation rendered as if message `index` were the last."""
        if index == len(self.messages) - 1:
            return self.text
        return self.vocabulary.render(self.messages[: index + 1], self.tools)

    def _answer_spans(self) -> dict[int, tuple[int, int]]:
        """Characters of each answer in the text, by message; {} when the template rewrites answers."""
        answers = [i for i, m in enumerate(self.messages) if m["role"] == "assistant" and "tool_calls" not in m]
        masked = list(self.messages)
        for index in answers:
            thinking, _ = split_thinking(masked[index]["content"])
            masked[index] = masked[index] | {"content": thinking + _sentinel(index)}
        try:
            rest = self.vocabulary.render(masked, self.tools)
        except RejectedRow:  # a template that reads the answer, such as JSON in it
            return {}
        statics = []
        for index in answers:
            static, sentinel, rest = rest.partition(_sentinel(index))
            if not sentinel:
                return {}
            statics.append(static)
        statics.append(rest)
        return _reassemble(self.text, statics, [(i, split_thinking(self.messages[i]["content"])[1]) for i in answers])


def split_thinking(content: str) -> tuple[str, str]:
    """(reasoning with its end mark, visible answer); templates treat the two differently."""
    head, mark, tail = content.rpartition(END_OF_THINKING)
    if not mark:
        return "", content
    body = tail.lstrip("\n")
    return head + mark + tail[: len(tail) - len(body)], body


def _reassemble(text: str, statics: list[str], answers: list[tuple[int, str]]) -> dict[int, tuple[int, int]]:
    """Lay statics and answers alternately along the text; {} unless they cover it exactly."""
    spans: dict[int, tuple[int, int]] = {}
    if not text.startswith(statics[0]):
        return {}
    position = len(statics[0])
    for (index, answer), following in zip(answers, statics[1:], strict=True):
        for candidate in (answer, answer.rstrip(), answer.lstrip(), answer.strip()):
            if candidate.strip() and text.startswith(candidate + following, position):
                spans[index] = (position, position + len(candidate))
                position += len(candidate) + len(following)
                break
        else:
            return {}
    return spans if position == len(text) else {}


def shared_length(one: Sequence[object], other: Sequence[object]) -> int:
    """Length of the common prefix of two texts, or of two lists of tokens."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _sentinel(index: int) -> str:
    """Private-use characters: no template strips, splits or escapes them."""
    return f"\ue000answer {index}\ue001"
