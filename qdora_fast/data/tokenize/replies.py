"""What a model wrote, taken apart: its reasoning and its answer.

A reply is read by the marks of the chat template (`thinking.py`), or by <think>...</think> where it has none. Whether
the model began inside its reasoning is told by the end of the prompt. Reasoning is no answer: it is neither scored nor
sent back in the next turn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qdora_fast.data.tokenize.thinking import OPENS, Thinking, thinks

_END_OF_PROMPT = 24
"""Tokens of a prompt in which reasoning may be opened."""


@dataclass(frozen=True)
class ReadReply:
    """Reasoning and answer, without special tokens and blank ends."""

    answer: str
    thought: str = ""
    unfinished: bool = False
    """Whether it ended within its reasoning, so that there is no answer."""


class ReplyReader:
    """Reads the replies of one tokenizer's models."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._thinking = thinks(tokenizer) if getattr(tokenizer, "chat_template", None) else None

    def __call__(self, tokens: Sequence[int], prompt: Sequence[int] = ()) -> ReadReply:
        """The reply in these tokens, which follow those of the prompt."""
        plain = self._tokenizer.decode(tokens, skip_special_tokens=True).strip()
        if self._thinking is None and not plain.startswith(OPENS):
            return ReadReply(plain)
        thinking = self._thinking or Thinking()
        asked = self._tokenizer.decode(list(prompt[-_END_OF_PROMPT:])).rstrip() if thinking.opened else ""
        raw = self._tokenizer.decode(tokens, skip_special_tokens=False).strip()
        begun = bool(asked) and asked.endswith(thinking.opens)
        return self._read(raw, thinking, begun)

    def split(self, text: str) -> ReadReply:
        """The same of a text whose tokens, and whose prompt, are not at hand: reasoning that is closed in it."""
        thinking = self._thinking or Thinking()
        opens = text.lstrip().startswith((thinking.opens, OPENS))
        begun = thinking.opened and thinking.closes in text
        return self._read(text.strip(), thinking, begun) if begun or opens else ReadReply(text)

    def _read(self, raw: str, thinking: Thinking, begun: bool) -> ReadReply:
        for lead in thinking.leads:
            if raw.startswith(lead):
                return ReadReply(self._plain(raw[len(lead) :]))
        opens = next((mark for mark in (thinking.opens, OPENS) if raw.startswith(mark)), "")
        if not (begun or opens):
            return ReadReply(self._plain(raw))
        closes = thinking.closes if begun or opens == thinking.opens else Thinking().closes
        thought, mark, answer = raw.removeprefix(opens).partition(closes)
        return ReadReply(self._plain(answer), self._plain(thought), unfinished=not mark)

    def _plain(self, text: str) -> str:
        added = self._tokenizer.added_tokens_decoder.values()
        special = sorted({str(token) for token in added if token.special}, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, special)) or r"(?!)", "", text).strip()
