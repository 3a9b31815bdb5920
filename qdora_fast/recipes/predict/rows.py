"""The rows that `predict` answers: of a file, a folder or a hub data set, of a list, or of a table in memory.

They are read by the readers of training and in the way of the training, where the model is a run's: its columns, its
format, its formatter. Rows that are not of that shape are recognised by their own columns, which is said. All rows are
in memory while they are answered, since every one of them, answered or not, is a row of the output.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdora_fast.config.code import FORMATTER
from qdora_fast.config.data import SourceSettings
from qdora_fast.config.loader import make_config
from qdora_fast.config.own_code import require_code_allowed
from qdora_fast.config.recorded import read_config
from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.read.formats import convert
from qdora_fast.data.read.questions import Question, Questions, read_questions, sources_of
from qdora_fast.data.read.readers import BadRow, RawRow
from qdora_fast.data.read.sources import raw_rows
from qdora_fast.system import console
from qdora_fast.system.errors import ConfigError, DataError
from qdora_fast.system.run_folder import RunFolder

IN_MEMORY = "rows in memory"
SHAPE = ("format", "columns", "formatter", "config")
"""Settings of a source that say how its rows are read."""


@dataclass(frozen=True)
class InputRows:
    """All rows as they were given, and what is asked for each."""

    name: str
    path: Path | None
    """The file, where it is one."""
    raw: Sequence[RawRow | BadRow]
    asked: Questions
    settings: SourceSettings

    @property
    def rows(self) -> list[dict[str, Any]]:
        """As they were given; {} for one that cannot be read."""
        return [each.row if isinstance(each, RawRow) else {} for each in self.raw]

    @property
    def questions(self) -> Sequence[Question]:
        """What is asked, row by row."""
        return self.asked.rows

    def digest(self) -> str:
        """SHA-256 of what is asked."""
        digest = hashlib.sha256()
        for each in self.questions:
            asked = [list(each.messages), each.tools, bool(each.problem)]
            digest.update(json.dumps(asked, sort_keys=True, default=str).encode() + b"\n")
        return digest.hexdigest()


def read_rows(
    given: str | Path | Sequence[Mapping[str, Any]],
    *,
    overrides: Sequence[str] = (),
    run: RunFolder | None = None,
    system: str | None = None,
) -> InputRows:
    """Read rows, and make a question of each.

    Args:
        given: a file, a folder or a hub data set, or the rows themselves.
        overrides: `data.*` settings, as `data.columns.prompt=ask`.
        run: the model's, whose shape of rows is tried first.
        system: a system message for rows that have none.

    Raises:
        DataError: nothing to read there, of unknown format, or more than half of the rows cannot be asked.
        ConfigError: a setting that is not of `data`, or a formatter that may not be run.
    """
    name = str(given) if isinstance(given, str | Path) else IN_MEMORY
    chosen, own = settings_of_rows(name, overrides)
    raw = list(raw_rows(chosen)) if isinstance(given, str | Path) else _in_memory(given, chosen.max_rows)
    asked, settings = None, chosen
    for trained in [] if own else trained_shapes(run, name):
        if trained.columns.prompt and not any(
            trained.columns.prompt in each.row for each in raw if isinstance(each, RawRow)
        ):
            continue
        try:
            asked, settings = read_questions(raw, trained), trained
            break
        except DataError:
            continue
    asked = asked or read_questions(raw, chosen)
    if system:
        asked = _with_system(asked, system)
    path = Path(name) if isinstance(given, str | Path) and Path(name).is_file() else None
    return InputRows(name, path, raw, asked, settings)


def settings_of_rows(name: str, overrides: Sequence[str]) -> tuple[SourceSettings, bool]:
    """How rows are read by these settings, and whether they say anything of their shape.

    Raises:
        ConfigError: a setting that is not of `data`.
    """
    for text in overrides:
        if not text.startswith("data."):
            raise ConfigError(f"--set {text}: only data.* says how rows are read (data.format, data.columns, ...)")
    given = list(overrides)
    names = {text.partition("=")[0].strip() for text in given}
    if "data.columns.prompt" in names and "data.columns.response" not in names:
        given.append("data.columns.response=answer")  # which nobody reads
    config = make_config({"model": {"name": "none"}, "data": {"path": name}}, given)
    require_code_allowed(config, FORMATTER)
    return config.data.mixture[0], any(text.startswith(tuple(f"data.{each}" for each in SHAPE)) for text in names)


def count_answers(rows: InputRows) -> int:
    """Rows that come with an answer, which is left out."""
    converter = rows.asked.detection.converter()
    return sum(isinstance(each, RawRow) and _has_answer(each, converter) for each in rows.raw)


def tell(rows: InputRows) -> None:
    """What was read, what is asked of it, and what is not."""
    found = rows.asked.detection
    how = f"`{found.name}`: {found.why}"
    answers = count_answers(rows) if rows.settings.formatter is None else 0
    left_out = f"; {answers:,} with an answer, which the model is not shown" if answers else ""
    console.line("rows", f"{rows.name}: {rows_of(len(rows.raw))} ({how}){left_out}")
    if bad := rows.asked.bad:
        console.line("warning", f"{rows_of(len(bad))} cannot be asked, which the output says: {sources_of(bad)}")
    for column in rows.asked.texts_left_out():
        console.line(
            "note", f"the text in column `{column}` is no part of the questions; {found.fix_for(column)} asks it"
        )


def rows_of(count: int) -> str:
    """1 row, 2,000 rows."""
    return f"{count:,} row{'' if count == 1 else 's'}"


def _has_answer(raw: RawRow, converter: Any) -> bool:
    try:
        return bool(convert(raw.row, converter, raw.padded).messages)
    except RejectedRow:
        return False


def trained_shapes(run: RunFolder | None, name: str) -> list[SourceSettings]:
    """How the rows of a run's training were read, where the run's settings say it.

    Raises:
        RefusedError: by a formatter that may not be run.
    """
    if run is None:
        return []
    config = read_config(run)
    shapes = []
    for source in config.data.mixture:
        if source.format != "auto" or source.columns.prompt or source.formatter:
            kept = {key: getattr(source, key) for key in SHAPE}
            shapes.append(SourceSettings(path=name, **kept))
    if any(each.formatter for each in shapes):
        require_code_allowed(config, FORMATTER)
    return [each for number, each in enumerate(shapes) if each not in shapes[:number] and each.format != "text"]


def _with_system(asked: Questions, system: str) -> Questions:
    message = {"role": "system", "content": system}

    def led(question: Question) -> Question:
        if question.problem or question.messages[0]["role"] == "system":
            return question
        return Question(question.source, [message, *question.messages], question.tools)

    return Questions([led(each) for each in asked.rows], asked.detection, asked.unused)


def _in_memory(rows: Sequence[Mapping[str, Any]], most: int | None) -> list[RawRow | BadRow]:
    """Rows of a list, by their number from 1."""
    found: list[RawRow | BadRow] = []
    for number, row in enumerate(rows[:most], 1):
        if not isinstance(row, Mapping):
            raise DataError(
                f"row {number} is {type(row).__name__}; each must be a dictionary, such as {{'question': ...}}"
            )
        found.append(RawRow({str(key): _plain(value) for key, value in row.items()}, f"row {number}"))
    return found


def _plain(value: Any) -> Any:
    """Lists and numbers of NumPy, which tables in memory are made of, as Python's own."""
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return {key: _plain(each) for key, each in value.items()} if isinstance(value, dict) else value
