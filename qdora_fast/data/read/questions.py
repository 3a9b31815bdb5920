"""Rows that are to be asked: rows of any shape that is trained on, with or without their answers.

A converter reads a question with its answer, so a stand-in is put where the answer is, or would be, and what comes
before the last answer is what is asked. So whatever is read for training is read here alike: the same shapes, columns,
tools, system messages and earlier turns. What only says how a row is learned (`train`, `label`, ...) is left aside.

A file of questions alone has no column from which to tell its shape; the name of its question column then says which
pair of `detection.KNOWN_PAIRS` it would be. A last answer that is there is never part of what is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qdora_fast.config.data import ColumnSettings, SourceSettings
from qdora_fast.data.clean.rejects import REASONS, RejectedRow
from qdora_fast.data.read import custom
from qdora_fast.data.read.detection import ANSWER_WORDS, CONTEXT, KNOWN_PAIRS, Detection, choose_format
from qdora_fast.data.read.fields import UnusedFields
from qdora_fast.data.read.formats import ROLE_OF, WRITTEN_TURNS, Columns, Converter, convert, written_turns
from qdora_fast.data.read.marks import OF_ROWS, is_mark
from qdora_fast.data.read.messages import Message, prompt_of
from qdora_fast.data.read.readers import BadRow, RawRow, bad_rows_error
from qdora_fast.system.errors import DataError

STAND_IN = "\ue0f0"
"""Stands for the answer."""
PAIRS = (Columns("prompt", "completion"), Columns("instruction", "output"), *KNOWN_PAIRS)
LONE = (*KNOWN_PAIRS[:1], *PAIRS)
"""The same in the order in which a question column alone is looked for: `question` first."""
NOT_ASKED = (*ANSWER_WORDS, "chosen", "rejected", "reference", "label", "ground_truth", "reasoning")
"""Words in the names of columns that hold answers: nobody expects these to be asked."""


@dataclass(frozen=True)
class Question:
    """What is asked for one row; or, in `problem`, why it cannot be asked."""

    source: str
    messages: Sequence[Message] = ()
    tools: list[dict[str, Any]] | None = None
    problem: str = ""


@dataclass(frozen=True)
class Questions:
    """The questions of all rows, in their order."""

    rows: Sequence[Question]
    detection: Detection
    unused: UnusedFields = field(default_factory=UnusedFields)

    @property
    def bad(self) -> list[Question]:
        """Those that cannot be asked."""
        return [each for each in self.rows if each.problem]

    def texts_left_out(self) -> list[str]:
        """Columns of text that are no part of the questions and whose names do not speak of answers."""
        return [
            name
            for name, unused in self.unused.by_name.items()
            if unused.is_text and not any(word in name.lower() for word in NOT_ASKED)
        ]


def read_questions(rows: Sequence[RawRow | BadRow], settings: SourceSettings) -> Questions:
    """The questions of rows as they lie in their files; a row that cannot be asked says why.

    Args:
        settings: format, columns and formatter; `columns.response` need not be in the rows.

    Raises:
        DataError: no rows, of unknown format, or more than half of them cannot be asked.
        ConfigError: a formatter that may not or cannot be run.
    """
    if not rows:
        raise DataError(f"{settings.path}: no rows in it; expected at least one question")
    formatter = custom.load_formatter(settings.formatter) if settings.formatter else None
    given = [_completed(row, settings.columns, formatter) for row in rows]
    good = [each for each in given if isinstance(each, RawRow)]
    bad = [each for each in given if isinstance(each, BadRow)]
    if not good:
        raise bad_rows_error(bad, len(bad))
    detection = choose_format(good, settings)
    if detection.name == "text":
        raise DataError(
            f"{settings.path}: rows of plain text ask nothing; name the column of the questions with "
            "--set data.columns.prompt=COLUMN"
        )
    unused = UnusedFields()
    questions = [_question(each, detection.converter(), unused) for each in given]
    found = Questions(questions, detection, unused)
    if 2 * len(found.bad) > len(rows):
        shown = "\n".join(f"  - {each.source}: {each.problem}" for each in found.bad[:5])
        raise DataError(
            f"{len(found.bad)} of {len(rows)} rows cannot be asked. They were read as `{detection.name}` "
            f"({detection.why}):\n{shown}\nRepair these rows, or say how they are read with --set data.format=... or "
            "--set data.columns.prompt=COLUMN"
        )
    return found


def with_stand_in(row: Mapping[str, Any], columns: ColumnSettings | None = None) -> dict[str, Any]:
    """The row with a stand-in for its answer, whether it has one or not, and without marks of what is learned.

    Args:
        columns: names of the user's own.

    Raises:
        RejectedRow: messages as text that is not JSON.
    """
    own = columns if columns and columns.prompt and columns.response else None
    named = {own.prompt, own.response, own.system, own.context} if own else set()
    kept = {key: value for key, value in row.items() if key not in OF_ROWS or key in named}
    if own and own.response:
        return {**kept, own.response: STAND_IN}
    for column in ("messages", "conversations"):
        turns = kept.get(column)
        if isinstance(turns, str) and WRITTEN_TURNS.fullmatch(turns):
            turns = written_turns(turns, column)
        if isinstance(turns, list) and turns and all(isinstance(turn, dict) for turn in turns):
            return {**kept, column: _turns_with_stand_in(turns)}
    pair = _pair_of(kept)
    return {**kept, pair.response: STAND_IN} if pair else kept


def told(reason: str, detail: str) -> str:
    """Why a row is of no use, in words."""
    return f"{REASONS[reason]} ({detail})" if detail else REASONS[reason]


def _completed(row: RawRow | BadRow, columns: ColumnSettings, formatter: custom.Formatter | None) -> RawRow | BadRow:
    if isinstance(row, BadRow):
        return row
    try:
        made = row.row if formatter is None else custom.apply(formatter, row.row)
        padded = frozenset(made) if formatter and row.padded else row.padded
        return RawRow(with_stand_in(made, columns), row.source, padded)
    except RejectedRow as error:
        return BadRow(error.reason, error.detail, row.source)


def _question(row: RawRow | BadRow, converter: Converter, unused: UnusedFields) -> Question:
    if isinstance(row, BadRow):
        return Question(row.source, problem=told(row.reason, row.detail))
    try:
        conversation = convert(row.row, converter, row.padded)
    except RejectedRow as error:
        return Question(row.source, problem=told(error.reason, error.detail))
    asked = prompt_of(conversation.messages)
    unused.see(
        conversation.unread,
        [text for text in conversation.texts() if text != STAND_IN],
        row.source,
        beside=conversation.thoughts(),
    )
    return Question(row.source, asked, conversation.tools)


def _turns_with_stand_in(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Everything up to the last turn that is no answer, and then the stand-in."""
    asked = [{key: value for key, value in turn.items() if not is_mark(key)} for turn in turns]
    while asked and _role(asked[-1]) == "assistant":
        asked.pop()
    by_role = any("role" in turn for turn in turns)
    return [*asked, {"role": "assistant", "content": STAND_IN} if by_role else {"from": "gpt", "value": STAND_IN}]


def _role(turn: Mapping[str, Any]) -> str:
    speaker = turn.get("role") or turn.get("from")
    return ROLE_OF.get(speaker.strip().lower(), "") if isinstance(speaker, str) else ""


def _pair_of(row: Mapping[str, Any]) -> Columns | None:
    """The question and answer columns of a row; the answer's need not be there."""
    both = next((pair for pair in PAIRS if pair.prompt in row and pair.response in row), None)
    if both:
        return both
    if CONTEXT in row and "input" not in row:  # read beside a `response`
        return next((pair for pair in KNOWN_PAIRS if pair.prompt in row), None)
    return next((pair for pair in LONE if pair.prompt in row), None)


def sources_of(rows: Iterable[Question], most: int = 3) -> str:
    """The first few of them by file and line, and how many more."""
    named = [f"{each.source} ({each.problem})" if each.problem else each.source for each in rows]
    more = f" and {len(named) - most} more" if len(named) > most else ""
    return f"{'; '.join(named[:most])}{more}"
