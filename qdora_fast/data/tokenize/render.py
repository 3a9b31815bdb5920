"""From rows to token ids and labels, with an account of everything that happened on the way.

It needs the tokenizer, and with it a chat template. An example has exactly two columns, `input_ids` and `labels`, is
no longer than asked for, and has at least one trained token, so that a trainer has nothing left to decide (some
trainers cut, mask or keep empty rows without a word).

`Renderer` does it for one row; `pipeline.py` runs it over files in several processes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qdora_fast.data.clean.rejects import Dropped, RejectedRow, bullet_list, total
from qdora_fast.data.read.messages import Row
from qdora_fast.data.store import Example
from qdora_fast.data.tokenize.left_out import Accountant
from qdora_fast.data.tokenize.masking import IGNORED, Masked, tokenize_text, tokenize_with_spans
from qdora_fast.data.tokenize.modes import Setting
from qdora_fast.data.tokenize.templates import TemplateChoice
from qdora_fast.data.tokenize.thinking import thinks
from qdora_fast.data.tokenize.vocabulary import Vocabulary
from qdora_fast.system.errors import DataError

PREVIEWS = 2
FLAGS = (
    *("eos_appended", "no_stop_token", "double_bos", "no_bos", "truncated", "words_elsewhere"),
    *("reasoned", "earlier_unlearned", "leaves_prompt", "reasoning_removed"),
)
"""What may hold for a rendered row, in the order of the bits in `Columns.flags`."""


@dataclass(frozen=True)
class Preview:
    """A rendered row as alternating pieces of text, each with whether it is trained."""

    source: str
    """Where the row stands in the user's files."""
    pieces: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Rendering:
    """How rows become tokens: with which tokenizer (its chat template is chosen, see `choose_template`), and how far.

    `max_length` and `limit` are in tokens; `stop_ids` end generation, from the model's generation config; EOS always
    counts. `template` is only told, never used. `date` is the day that a template is told which asks for the clock.
    `thinking` is `data.thinking`, without effect on a template that knows of no reasoning.
    """

    tokenizer: Any
    max_length: int
    train_on: Literal["responses", "all"] = "responses"
    on_long: Literal["drop", "truncate"] = "drop"
    stop_ids: frozenset[int] = frozenset()
    max_fraction: float = 1.0
    template: TemplateChoice | None = None
    date: str | None = None
    thinking: Setting = "as_is"

    @property
    def limit(self) -> int:
        """Length in tokens of the longest row that is not dropped or cut."""
        return self.max_length if self.on_long == "truncate" else int(self.max_fraction * self.max_length)

    def identity(self) -> dict[str, Any]:
        """Everything that the tokens depend on, in a form that is the same on every machine."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_padding()  # set anew by every call of the tokenizer; what was left over is no part of it
        backend.no_truncation()
        named = json.dumps(self.tokenizer.special_tokens_map, sort_keys=True, default=str)
        return {
            "tokenizer": hashlib.sha256(f"{backend.to_str()}{named}".encode()).hexdigest(),
            "template": hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest(),
            **({"date": self.date} if self.date else {}),
            **({"thinking": self.thinking} if self.thinking != "as_is" and thinks(self.tokenizer) else {}),
            "max_length": self.max_length,
            "limit": self.limit,
            "train_on": self.train_on,
            "on_long": self.on_long,
            "stop_ids": sorted(self.stop_ids),
        }


class TooLong(RejectedRow):
    """A row of `length` tokens where `limit` are allowed."""

    def __init__(self, length: int, limit: int) -> None:
        super().__init__("too_long", f"{length} tokens of {limit}")
        self.length = length


class Renderer:
    """Turns one row after the other into tokens.

    Raises:
        ConfigError: a slow tokenizer, or one without any stop token.
    """

    def __init__(self, rendering: Rendering) -> None:
        self._rendering = rendering
        self._vocabulary = Vocabulary(
            rendering.tokenizer, rendering.stop_ids, date=rendering.date, thinking=rendering.thinking
        )
        self._accountant = Accountant(self._vocabulary)

    def __call__(self, row: Row) -> tuple[Example, frozenset[str]]:
        """The row's example, and its flags: those of `masking.Masked`, and "truncated".

        Raises:
            RejectedRow: it cannot be masked for sure, is too long, or has nothing to learn.
        """
        masked = self._tokenize(row)
        length, limit = len(masked.input_ids), self._rendering.limit
        if length > limit and self._rendering.on_long == "drop":
            raise TooLong(length, limit)
        labels = masked.labels[:limit]
        if all(label == IGNORED for label in labels):
            raise RejectedRow("no_trained_tokens", f"the first {limit} of {length} tokens are all prompt")
        flags = frozenset(masked.flags) | ({"truncated"} if length > limit else frozenset())
        return {"input_ids": masked.input_ids[:limit], "labels": labels}, flags

    def left_out(self, row: Row) -> frozenset[str]:
        """What of a rendered row its text leaves out, see `left_out.py`."""
        return self._accountant.left_out(row)

    def content_tokens(self, row: Row) -> int:
        """Tokens of a row's contents, without those of the template."""
        return sum(len(self._vocabulary.encode(text).ids) for text in contents(row))

    def _tokenize(self, row: Row) -> Masked:
        if "text" in row:
            return tokenize_text(row["text"], self._vocabulary)
        return tokenize_with_spans(
            row["messages"], self._vocabulary, tools=row["tools"], train_on=self._rendering.train_on
        )


def contents(row: Row) -> list[str]:
    """The texts of a row: the contents of its messages and their tool calls, or the plain text."""
    if "text" in row:
        return [row["text"]]
    calls = [json.dumps(message["tool_calls"]) for message in row["messages"] if "tool_calls" in message]
    return [message["content"] for message in row["messages"]] + calls


def previews(rows: Sequence[Row], examples: Sequence[Example], tokenizer: Any) -> tuple[Preview, ...]:
    """The first rows as text, with the learned part marked."""
    count = min(PREVIEWS, len(examples))
    return tuple(_preview(rows[index], examples[index], tokenizer) for index in range(count))


def _preview(row: Row, example: Example, tokenizer: Any) -> Preview:
    pieces: list[tuple[str, bool]] = []
    ids, trained = example["input_ids"], [label != IGNORED for label in example["labels"]]
    start = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or trained[end] != trained[start]:
            pieces.append((tokenizer.decode(ids[start:end]), trained[start]))
            start = end
    return Preview(row["meta"]["source"], tuple(pieces))


def refuse_hopeless(rows_in: int, retained: int, dropped: Sequence[Dropped], max_length: int) -> None:
    """A run on almost nothing is refused; rows that are merely too long are the user's choice, unless all are.

    Raises:
        DataError: with the reasons and their fixes.
    """
    unclear = total(each for each in dropped if each.reason != "too_long")
    if not rows_in or (retained and unclear * 2 <= rows_in):
        return
    reasons = {each.reason for each in dropped}
    fixes = []
    if reasons & {"too_long", "no_trained_tokens"}:
        fixes.append(f"raise model.max_length (now {max_length})")
    if "too_long" in reasons:
        fixes.append("set data.on_long: truncate")
    if reasons & {"template_error", "answer_not_located"}:
        fixes.append("choose another data.template, such as alpaca")
    if any("is undefined" in example for each in dropped for example in each.examples):
        fixes.append("set what the template expects at the top of a copy of it, a .jinja file named in data.template")
    if "special_token_in_text" in reasons:
        fixes.append("remove the special tokens from the text (or use data.format: text for text rendered already)")
    raise DataError(
        f"{rows_in - retained} of {rows_in} rows cannot be trained on:\n"
        f"{bullet_list(dropped)}\nTo fix it: {'; or '.join(fixes)}."
    )
