"""Rows that cannot be used: why, how many, and where the first of them stand.

A set of ten thousand rows nearly always holds a few broken ones. Stopping at the first would be
useless, dropping them silently would be dishonest. So every stage raises `RejectedRow` with a reason
code, the loop around it counts the codes in a `DropCounter`, and `DropCounter.dropped` goes into the report.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

EXAMPLES_PER_REASON = 3

REASONS: dict[str, str] = {
    # reading a line
    "bad_json": "the line is not valid JSON",
    "not_an_object": "the line holds something other than an object {...}",
    "line_too_long": "the line is longer than a row can be",
    "wrong_columns": "a table row has more or fewer values than there are columns",
    "formatter_failed": "data.formatter raised an error, or returned something other than a dictionary",
    "left_out": "data.formatter returned None",
    "thinned": "left out by the weight of its source",
    # reading a row as a conversation
    "missing_field": "a column that the format needs is missing or empty",
    "wrong_type": "a value is of the wrong kind; of several texts choose one, in the file or in a data.formatter",
    "not_text": "a row holds an image, audio or another part that is not text",
    "broken_unicode": "the text holds half a surrogate pair and cannot be encoded",
    "unknown_role": "a message has a role that is not system, user, assistant or tool",
    "system_not_first": "a system message stands after the first turn",
    "same_role_twice": "two assistant turns in a row of which only one is to be trained",
    "no_user_turn": "nobody asks anything: there is no user turn before an answer",
    "no_assistant_turn": "there is no answer to learn from",
    "empty_prompt": "a user turn is blank",
    "empty_answer": "an answer is blank",
    "nothing_to_train": "every answer is marked as not to be trained",
    "labelled_bad": "the row says that its answer is a bad one, as in sets for KTO",
    "broken_tool_json": "tools or a tool call are not valid JSON of the expected shape",
    # what a row says: data.filters
    "too_short": "prompt and answer together have fewer tokens than data.filters.min_tokens",
    "placeholder_answer": "an answer is a stand-in, or holds an unfilled {{name}}",
    "truncated_answer": "an answer stops in the middle",
    "role_order": "the assistant opens the conversation, or a tool result answers no call",
    "mojibake": "text that was decoded with the wrong encoding",
    "control_characters": "characters that are no text (NUL, escape sequences, U+FFFD)",
    "repetition": "an answer repeats itself",
    "refusal": "an answer refuses",
    # what other rows say: data.dedup and the split
    "exact_duplicate": "the same as another row, apart from case and white space",
    "near_duplicate": "nearly the same as another row",
    "in_held_out": "a training row that repeats a held-out row, or its prompt",
    # what the reference model says: data.quality
    "high_ifd": "the question does not help to predict the answer",
    "outlier_loss": "the answer is far less likely than those of other rows",
    # turning a conversation into tokens
    "template_error": "the chat template refuses the conversation",
    "special_token_in_text": "the text spells out one of the tokenizer's special tokens",
    "answer_not_located": "the template rewrites the answer or leaves it out, so that what to learn cannot be told",
    "no_trained_tokens": "nothing of the answer is left to train on",
    "too_long": "longer than data.filters.max_fraction of model.max_length",
}
"""Every reason code with the sentence shown to people."""

KEEPING: dict[str, str] = {
    "too_short": "data.filters.min_tokens: 0",
    "placeholder_answer": "data.filters.placeholders: false",
    "truncated_answer": "data.filters.truncated: false",
    "role_order": "data.filters.role_order: false",
    "mojibake": "data.filters.mojibake: false",
    "control_characters": "data.filters.control_characters: false",
    "repetition": "data.filters.max_repetition: 1",
    "refusal": "data.filters.refusals: false",
    "exact_duplicate": "data.dedup.exact: false",
    "near_duplicate": "data.dedup.near: false",
    "too_long": "a larger model.max_length, or data.on_long: truncate",
    "thinned": "a larger weight of their source",
}
"""The setting with which rows are kept that a filter drops."""

MALFORMED = frozenset(
    ("bad_json", "not_an_object", "line_too_long", "wrong_columns", "formatter_failed", "missing_field", "wrong_type")
) | {"not_text", "broken_unicode", "unknown_role", "broken_tool_json", "labelled_bad"}
"""Rows that cannot be read at all: `data.on_bad_row` decides about them. All others can be read, and are unfit."""


class RejectedRow(Exception):
    """One row cannot be used. Not an error of the run: it is caught, counted and reported."""

    def __init__(self, reason: str, detail: str = "") -> None:
        assert reason in REASONS, f"unknown reason code {reason!r}"
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail.encode(errors="backslashreplace").decode()  # a file may hold half a surrogate pair


@dataclass(frozen=True)
class Dropped:
    """How many rows were dropped for one reason, and the sources of the first few."""

    reason: str
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.count} x {self.reason}: {REASONS[self.reason]} ({'; '.join(self.examples)})"


class DropCounter:
    """Counts rejected rows while a stage runs; `dropped` gives the counts."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def add(self, rejected: RejectedRow, source: str) -> None:
        """Count one rejected row."""
        self.count(rejected.reason, source, rejected.detail)

    def count(self, reason: str, source: str, detail: str = "") -> None:
        """Count one row that was dropped for `reason`."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        examples = self._examples.setdefault(reason, [])
        if len(examples) < EXAMPLES_PER_REASON:
            examples.append(f"{source}, {detail}" if detail else source)

    def dropped(self) -> tuple[Dropped, ...]:
        """All reasons met, most frequent first."""
        ranked = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return tuple(Dropped(reason, count, tuple(self._examples[reason])) for reason, count in ranked)


def total(dropped: Iterable[Dropped]) -> int:
    """Number of rows behind a stage's drop counts."""
    return sum(each.count for each in dropped)


def after_drops(message: str, dropped: Sequence[Dropped], rows_in: int) -> str:
    """An error about what is left of `rows_in` rows, behind what was dropped before, each with the setting that keeps
    it: too few rows are seldom the fault of whoever gave enough."""
    if not dropped:
        return message
    ways = {each: KEEPING.get(each.reason) for each in sorted(dropped, key=lambda each: -each.count)}
    lines = [f"  - {each}" + (f"; {way} keeps them" if way else "") for each, way in ways.items()]
    return f"{total(dropped)} of {rows_in} rows were dropped:\n{chr(10).join(lines)}\n{message}"


def bullet_list(dropped: Iterable[Dropped]) -> str:
    """One indented line per reason, for reports and error messages."""
    return "\n".join(f"  - {each}" for each in dropped)
