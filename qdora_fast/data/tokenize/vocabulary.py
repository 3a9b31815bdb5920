"""What masking needs to know about a tokenizer, looked up once instead of once per row."""

from __future__ import annotations

import copy
import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qdora_fast.data.read.messages import Message
from qdora_fast.data.tokenize.chat_text import Tools, template_for
from qdora_fast.data.tokenize.modes import AS_IS, RenderMode, Setting, in_mode_of, without_reasoning
from qdora_fast.data.tokenize.thinking import Mode, thinking_of
from qdora_fast.system.errors import ConfigError, first_line, is_panic
from qdora_fast.system.install import installation


@contextmanager
def panics_told() -> Iterator[None]:
    """Raise ConfigError for a panic of the tokenizer's Rust code, which is no Exception: a pattern in tokenizer.json
    that takes too long, or a table that contradicts itself."""
    try:
        yield
    except BaseException as error:
        if not is_panic(error):
            raise
        raise ConfigError(
            f"the base's tokenizer breaks down on a text ({first_line(error)}); its tokenizer.json is damaged, or not "
            "meant for use: take the base from where it was published"
        ) from None


def adds_bos(tokenizer: Any) -> bool:
    """Whether this tokenizer starts a text with BOS by itself; having a BOS token does not mean it does."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


@dataclass(frozen=True)
class Encoding:
    """Tokens of a text with their character ranges [starts, ends) in it."""

    text: str
    ids: list[int]
    starts: list[int]
    ends: list[int]

    def token_at(self, character: int) -> int:
        """First token that reaches beyond `character`: the one that holds it, or the next."""
        return bisect_right(self.ends, character)

    def token_from(self, character: int) -> int:
        """First token that starts at `character` or later."""
        return bisect_left(self.starts, character)

    def text_of(self, start: int, end: int) -> str:
        """The text under tokens [start, end)."""
        return self.text[self.starts[start] : self.ends[end - 1]] if start < end else ""


class Vocabulary:
    """A fast tokenizer with its special, added and stopping tokens at hand.

    Args:
        tokenizer: a Transformers tokenizer with a Rust backend and, for conversations, a chat template.
        stop_ids: tokens that end generation, normally `generation_config.eos_token_id`; EOS is always one.
        date: the day that a template is told which asks for the clock; None: the time now.
        thinking: `data.thinking`, which decides the mode of each conversation, see `of`.

    Raises:
        ConfigError: a slow tokenizer, or no stop token at all.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop_ids: Collection[int] = (),
        *,
        date: str | None = None,
        thinking: Setting = "as_is",
    ) -> None:
        if not tokenizer.is_fast:
            raise ConfigError(
                f"the tokenizer {type(tokenizer).__name__} is a slow one, which cannot say where in the text a token "
                "lies; load the model with a fast tokenizer (a tokenizer.json, or one that transformers makes with\n  "
                f"{installation().adds_packages('tokenizers', 'sentencepiece')})"
            )
        self.tokenizer, self.date, self.setting = tokenizer, date, thinking
        self.render_mode: RenderMode = AS_IS
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self.stop_ids = frozenset(stop_ids) | ({self.eos_id} if self.eos_id is not None else frozenset())
        if not self.stop_ids:
            raise ConfigError("the tokenizer has no EOS and no stop token is given: the model could never stop")
        self.adds_bos = adds_bos(tokenizer)
        added = tokenizer.added_tokens_decoder
        self.added_ids = frozenset(number for number, token in added.items() if str(token).strip())
        special = sorted({str(token) for token in added.values() if token.special}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")

    def encode(self, text: str, *, special: bool = False) -> Encoding:
        """Tokenise; `special` lets the tokenizer add its BOS and so on, which rendered chats must not."""
        with panics_told():
            out = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        starts, ends = zip(*out["offset_mapping"], strict=True) if out["input_ids"] else ((), ())
        return Encoding(text, out["input_ids"], list(starts), list(ends))

    def render(
        self,
        messages: Sequence[Message],
        tools: list[dict[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """The chat template's text for a conversation.

        Raises:
            RejectedRow: `template_error` with the template's own words.
        """
        return self.render_mode.render(
            self.tokenizer, messages, tools, add_generation_prompt=add_generation_prompt, date=self.date
        )

    def of(self, messages: Sequence[Message], tools: Tools = None) -> tuple[list[Message], Vocabulary]:
        """A conversation with its reasoning where the template reads it, and the vocabulary that renders it in its own
        mode, as `data.thinking` decides it; both as they are where templates are not asked."""
        if self.setting == "as_is":
            return list(messages), self
        asked, render_mode = in_mode_of(self.tokenizer, messages, tools, self.setting)
        return asked, self._with(render_mode)

    def without_reasoning(self, messages: list[Message]) -> list[Message]:
        """Messages without their reasoning; as they are where templates are not asked."""
        thinking = self.render_mode.thinking
        return without_reasoning(messages, thinking) if thinking else messages

    def in_mode(self, mode: Mode | None) -> Vocabulary:
        """The vocabulary that renders all conversations in one mode; None: in the template's default."""
        thinking = thinking_of(template_for(self.tokenizer)) if mode else None
        return self._with(RenderMode(thinking, mode) if thinking else AS_IS)

    def _with(self, render_mode: RenderMode) -> Vocabulary:
        other = copy.copy(self)
        other.render_mode = render_mode
        return other

    def special_in(self, text: str) -> str | None:
        """The first special token that `text` spells out, if any."""
        match = self._special.search(text)
        return match[0] if match else None
