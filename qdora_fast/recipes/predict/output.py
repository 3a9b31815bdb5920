"""The rows with their answers: JSON lines, a JSON list, CSV, TSV or Parquet, by the file's ending.

Every row that came in goes out, in its order, with its own columns as they were and the answer's behind them. A column
of the input is never replaced: where it has the name of one of ours (`answer` is the reference in many sets), ours is
called `predicted_...`. What a form cannot hold (a picture in JSON lines, a column of texts and numbers in Parquet) is
refused before anything is answered.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

from qdora_fast.inference.many import Said
from qdora_fast.recipes.predict.schema import AnswerSchema
from qdora_fast.system.atomic import staged_file
from qdora_fast.system.disk import disk_errors
from qdora_fast.system.errors import ConfigError, first_line

Rows = Sequence[Mapping[str, Any]]
ANSWER = "answer"
OURS = (ANSWER, "stopped_by", "tokens", "reasoning", "valid_json", "json_error", "error")
ALWAYS = OURS[:3]


@dataclass(frozen=True)
class Names:
    """What our columns are called beside those of the rows."""

    by_own: Mapping[str, str]

    @property
    def answer(self) -> str:
        """The answers' column."""
        return self.by_own[ANSWER]


def name_columns(rows: Rows, answer: str | None) -> Names:
    """Names of our columns that none of the rows' has.

    Args:
        answer: the user's choice for the answers.

    Raises:
        ConfigError: the rows have this column.
    """
    taken = {key for row in rows for key in row}
    if answer in taken:
        raise ConfigError(f"--answer-column {answer}: the rows have a column of this name, which stays; choose another")
    names = {ours: ours if ours not in taken else _free(f"predicted_{ours}", taken) for ours in OURS}
    return Names(names | ({ANSWER: answer} if answer else {}))


def added_columns(said: Sequence[Said], names: Names, schema: AnswerSchema | None) -> dict[str, list[Any]]:
    """Our columns by name, a value for each row; those in which no row has anything to say are left out."""
    columns: dict[str, list[Any]] = {
        "answer": [each.text for each in said],
        "stopped_by": [each.stopped_by for each in said],
        "tokens": [each.tokens for each in said],
    }
    if any(each.reasoning for each in said):
        columns["reasoning"] = [each.reasoning for each in said]
    if schema:
        problems = ["no answer" if each.problem else schema.problem(each.text) for each in said]
        columns["valid_json"] = [not problem for problem in problems]
        columns["json_error"] = [problem or None for problem in problems]
    if any(each.problem for each in said):
        columns["error"] = [each.problem or None for each in said]
    return {names.by_own[ours]: values for ours, values in columns.items()}


def with_columns(rows: Rows, added: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The rows with further columns behind their own."""
    return [{**row, **{name: values[number] for name, values in added.items()}} for number, row in enumerate(rows)]


def check_form(out: Path, rows: Rows, source: Path | None) -> None:
    """Make sure that the rows can be written in the form of this file.

    Args:
        source: the file that they are from.

    Raises:
        ConfigError: an ending that is not written, or rows that it cannot hold.
    """
    ending = out.suffix.lower()
    if ending not in FORMS:
        raise ConfigError(f"--out {out}: written are {', '.join(FORMS)}, by the file's ending")
    if source is not None and out.exists() and out.samefile(source):
        raise ConfigError(f"--out {out}: this is the file of the rows; name another")
    if ending == ".parquet":
        _table(rows, source, {}, out)
    else:
        for number, row in enumerate(rows, 1):
            try:
                json_text(row)
            except TypeError as error:
                raise ConfigError(f"--out {out}: row {number}: {error}; write a .parquet file") from None


def write(out: Path, rows: Rows, added: Mapping[str, Sequence[Any]], source: Path | None) -> None:
    """Write the rows with their further columns; the file appears complete, or not at all."""
    with disk_errors(out), staged_file(out) as staging:
        if out.suffix.lower() == ".parquet":
            import pyarrow.parquet

            pyarrow.parquet.write_table(_table(rows, source, added, out), staging)
        else:
            FORMS[out.suffix.lower()](staging, with_columns(rows, added))


def json_text(value: Any) -> str:
    """A value as JSON. Half a surrogate pair, which has no UTF-8, is written as its escape.

    Raises:
        TypeError: it holds what JSON cannot.
    """
    text = json.dumps(value, ensure_ascii=False, default=_as_json)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, default=_as_json)
    return text


def _as_json(value: Any) -> Any:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"a value of type {type(value).__name__} is no JSON")


def _free(name: str, taken: set[str]) -> str:
    numbered = (name if number == 1 else f"{name}_{number}" for number in range(1, len(taken) + 2))
    return next(each for each in numbered if each not in taken)


def _jsonl(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json_text(row) + "\n" for row in rows)


def _json(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("[\n" + ",\n".join(map(json_text, rows)) + "\n]\n")


def _csv(path: Path, rows: Rows, delimiter: str = ",") -> None:
    text = io.StringIO(newline="")
    names = list(dict.fromkeys(key for row in rows for key in row))
    table = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    table.writerow(names)
    table.writerows([_cell(row.get(name)) for name in names] for row in rows)
    path.write_bytes(text.getvalue().encode("utf-8", "backslashreplace"))


def _cell(value: Any) -> str:
    """Text as it is, nothing for null, and JSON for the rest."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json_text(value).strip('"')


def _table(rows: Rows, source: Path | None, added: Mapping[str, Sequence[Any]], out: Path) -> Any:
    """The rows as a table of Arrow: that of their own Parquet file, with its types, or one that is made of them."""
    import pyarrow
    import pyarrow.parquet

    def column(name: str, values: Sequence[Any]) -> Any:
        try:
            return pyarrow.array(values)
        except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError) as error:
            raise ConfigError(
                f"--out {out}: column `{name}` is no column of a table ({first_line(error)}); write a .jsonl file"
            ) from None

    names = dict.fromkeys(key for row in rows for key in row)
    if source is not None and source.suffix.lower() == ".parquet":
        table = pyarrow.parquet.read_table(source, partitioning=None).slice(0, len(rows))
    else:
        table = pyarrow.table({name: column(name, [row.get(name) for row in rows]) for name in names})
    for name, values in added.items():
        table = table.append_column(name, column(name, values)) if len(table.schema) else pyarrow.table({name: values})
    return table


FORMS: dict[str, Callable[..., None]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": lambda path, rows: _csv(path, rows, "\t"),
    ".parquet": lambda path, rows: None,
}
"""How a file of this ending is written; for Parquet see `write`."""
