"""Which format a file has, decided on its first rows and reported.

Rules, not guesses: a row has a format when it has that format's columns. At least 95 % of the first
100 rows must agree, else the answer is an error with the YAML lines that would settle it. The decision,
its agreement and its reason go into the report, and `data.format` overrides it.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

from qdora_fast.config.data import SourceSettings
from qdora_fast.data.read import in_memory
from qdora_fast.data.read.formats import FORMATS, WRITTEN_TURNS, Columns, Converter, columns_converter
from qdora_fast.data.read.layouts import named_layout
from qdora_fast.data.read.readers import RawRow
from qdora_fast.system.errors import DataError

ROWS_LOOKED_AT = 100
AGREEMENT = 0.95
COLUMNS_SHOWN = 40
LETTERS_SHOWN = 40

KNOWN_PAIRS = (
    Columns("question", "answer"),
    Columns("prompt", "response"),
    Columns("instruction", "response"),
    Columns("query", "response"),
    Columns("input", "output"),
    Columns("question", "response"),
    Columns("problem", "solution"),
)
"""Column pairs known by name: GSM8K, LLM Foundry, Dolly, ms-swift, ... Beside them `context` is further input."""
CONTEXT = "context"
PAIR_OF = {"alpaca": Columns("instruction", "output"), "prompt_completion": Columns("prompt", "completion")}
"""The columns of formats that are such a pair, too."""

QUESTION_WORDS = ("prompt", "question", "instruction", "query", "input", "user", "problem")
ANSWER_WORDS = ("response", "answer", "output", "completion", "reply", "assistant", "solution", "target")


@dataclass(frozen=True)
class Detection:
    """The format of the rows: how many of those checked agree, and why it was chosen."""

    name: str
    agreement: float
    checked: int
    why: str
    columns: Columns | None = None

    def converter(self) -> Converter:
        """The function that reads a row of this format."""
        return columns_converter(self.columns) if self.columns else FORMATS[self.name]

    def fix_for(self, column: str | None) -> str:
        """How text is read that belongs to the question and is not read so far; None: it is in no column of its own."""
        pair = self.columns or PAIR_OF.get(self.name)
        if pair is None or pair.context or column is None:
            return "a function of yours that puts it into the conversation (data.formatter: FILE.py:function)"
        system = f", system: {readable(pair.system)}" if pair.system else ""
        names = (
            f"prompt: {readable(pair.prompt)}, context: {readable(column)}, response: {readable(pair.response)}{system}"
        )
        return f"data.columns: {{{names}}}"


def choose_format(rows: Sequence[RawRow], settings: SourceSettings) -> Detection:
    """The format that the settings of the source name, else the one that its first rows show.

    Raises:
        DataError: see `detect`; or a named column does not exist.
    """
    given = settings.columns
    if given.prompt and given.response:
        columns = Columns(given.prompt, given.response, given.system, given.context)
        _check_columns([name for name in (given.prompt, given.response, given.system, given.context) if name], rows)
        return Detection("columns", 1.0, 0, "set in data.columns", columns)
    if settings.format != "auto":
        return Detection(settings.format, 1.0, 0, "set in data.format")
    return detect([raw.row for raw in rows[:ROWS_LOOKED_AT]], in_memory.shown(settings.path))


def detect(rows: Sequence[dict[str, Any]], path: str = "data") -> Detection:
    """Recognise the format of rows by their columns; looks at the first 100.

    Raises:
        DataError: fewer than 95 % agree on a format; names the columns and the settings to choose from.
    """
    checked = rows[:ROWS_LOOKED_AT]
    assert checked, "detection needs at least one row"
    votes = Counter(_signature(row) for row in checked)
    (winner, count), *_ = votes.most_common(1)
    if winner is None or count / len(checked) < AGREEMENT:
        raise DataError(_unrecognised(checked, votes, path))
    name, why, columns = winner
    if columns and _is_text(CONTEXT, checked):
        columns, why = replace(columns, context=CONTEXT), f"{why}, with {CONTEXT}"
    return Detection(name, count / len(checked), len(checked), why, columns)


def _signature(row: dict[str, Any]) -> tuple[str, str, Columns | None] | None:
    """(format, reason, columns) of one row, or None."""
    for column in ("messages", "conversations"):
        style = _turn_style(row.get(column))
        if style == "role" and column == "messages":
            return "chatml", "messages with role and content", None
        if style is not None:
            return "sharegpt", f"{column} with {style}", None
    if "prompt" in row and "completion" in row:
        return "prompt_completion", "columns prompt and completion", None
    if "instruction" in row and "output" in row:
        return "alpaca", "columns instruction and output", None
    for pair in KNOWN_PAIRS:
        if pair.prompt in row and pair.response in row:
            return "columns", f"columns {pair.prompt} and {pair.response}", pair
    if list(row) == ["text"]:
        return "text", "a single column text", None
    return None


def _turn_style(turns: object) -> str | None:
    """How a turn names its speaker, "role" or "from"; None for anything that is not a list of turns, or JSON of one."""
    if isinstance(turns, str):
        turns = _parsed(turns)
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], dict):
        return None
    return next((key for key in ("role", "from") if turns[0].get(key) is not None), None)


def _parsed(text: str) -> object:
    """The list in a text of JSON, None where there is none. One that Python printed passes, to be refused by name."""
    if not WRITTEN_TURNS.fullmatch(text):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return [{"role": "text"}]


def _is_text(column: str, rows: Sequence[dict[str, Any]]) -> bool:
    """Whether there is such a column, and all its values are text or nothing."""
    return any(column in row for row in rows) and all(isinstance(row.get(column), str | None) for row in rows)


def _check_columns(names: Sequence[str], rows: Sequence[RawRow]) -> None:
    there = _column_names(raw.row for raw in rows[:ROWS_LOOKED_AT])
    for name in names:
        if name not in there:
            near = difflib.get_close_matches(name, there[:COLUMNS_SHOWN], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"data.columns names {name!r}, but the columns are {_listed(there)}{hint}")


def _unrecognised(rows: Sequence[dict[str, Any]], votes: Counter[Any], path: str) -> str:
    names = _column_names(rows)
    if "input_ids" in names:
        return f"{path}: rows are tokenised already (input_ids); give the text instead, tokens belong to one model"
    seen = [f"{count} {vote[0] if vote else 'unknown'}" for vote, count in votes.most_common()]
    mixed = f" of mixed formats ({', '.join(seen)})" if len(votes) > 1 else ""
    message = (
        f"{path}: cannot tell the format of the first {len(rows)} rows{mixed}; their columns are: {_listed(names)}"
    )
    layout = next((layout for row in rows if (layout := named_layout(row))), None)
    if layout:
        return f"{message}\n{layout}"
    if any(len(name) > LETTERS_SHOWN or name.isdigit() for name in names):
        return f"{message}\nThese look like values: add a first line with column names, such as question and answer."
    return f"{message}\nSay what they are with one of:\n" + "\n".join(_suggestions(names, votes))


def _column_names(rows: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(name) for row in rows for name in row))


def readable(name: str) -> str:
    """A column's name as people can read it: short, no halves of surrogate pairs, in quotes where YAML needs them."""
    short = name if len(name) <= LETTERS_SHOWN else f"{name[:LETTERS_SHOWN]}..."
    if name != name.strip() or set(name) & set(",:#{}'\""):
        short = repr(short)
    return short.encode("utf-8", "backslashreplace").decode()


def _listed(names: Sequence[str]) -> str:
    """Column names as people can read them, and not too many."""
    more = f" and {len(names) - COLUMNS_SHOWN} more" if len(names) > COLUMNS_SHOWN else ""
    return f"{', '.join(map(readable, names[:COLUMNS_SHOWN]))}{more}"


def _suggestions(names: list[str], votes: Counter[Any]) -> list[str]:
    """Up to three settings, the most likely first."""
    settings = [f"  data.format: {vote[0]}" for vote, _ in votes.most_common() if vote and vote[0] != "columns"]
    if "text" in names:
        settings.append("  data.format: text")
    shown = [_listed([name]) for name in names[:COLUMNS_SHOWN]]
    asks = {name: _likeness(name, QUESTION_WORDS) for name in shown}
    answers = {name: _likeness(name, ANSWER_WORDS) for name in shown}
    pairs = sorted(permutations(shown, 2), key=lambda pair: -asks[pair[0]] - answers[pair[1]])
    settings += [f"  data.columns: {{prompt: {question}, response: {answer}}}" for question, answer in pairs[:3]]
    return list(dict.fromkeys(settings))[:3] or ["  data.columns: {prompt: YOUR_QUESTION, response: YOUR_ANSWER}"]


def _likeness(name: str, words: Sequence[str]) -> float:
    """How much a column name, or one of its words, resembles one of `words`; 0 to 1."""
    parts = re.split(r"[\W_]+", name.lower())
    return max(difflib.SequenceMatcher(None, part, word).ratio() for part in parts for word in words)
