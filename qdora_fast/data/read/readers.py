"""One file in, raw rows out, each with its source: where it stands.

The text formats are read line by line by hand instead of through `datasets.load_dataset`, for two
reasons: a broken line is then named by its number, and CSV values stay the strings they are
(pandas underneath turns the answers "NA", "null" and "007" into nothing, nothing and 7).
Only small .json arrays are held in memory. Binary tables are `tables.py`'s business.

A line that cannot be read is given as a `BadRow` instead; what becomes of it is not decided here, nor is
whether a row that can be read is of any use. A file that cannot be read (cut, of another encoding) is an error.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qdora_fast.data.clean.rejects import REASONS
from qdora_fast.data.read.compression import DAMAGE, PACKED_ENDINGS, lines, open_bytes, refuse_bomb, refuse_utf16
from qdora_fast.data.read.json_values import Decoder, DoubledKey, rows_of, stands_twice
from qdora_fast.data.read.large_json import array_items
from qdora_fast.data.read.tables import TableRow, arrow_rows, parquet_rows
from qdora_fast.system.errors import DataError
from qdora_fast.system.json_files import is_deep
from qdora_fast.system.limits import JSON_DEPTH, LINE_BYTES, TABLE_COLUMNS, VALUE_CHARACTERS

LINES_SHOWN = 5
LARGE_JSON = 64 * 2**20
"""Bytes from which on a .json file is read piece by piece."""

FIXES = {
    "bad_json": "each line must hold one JSON object",
    "not_an_object": "each line must hold one JSON object",
    "wrong_columns": 'put "quotes" around values that hold a separator or a line break',
    "broken_unicode": "if the file is not UTF-8, convert it: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW_FILE",
    "formatter_failed": "data.formatter must return a dictionary or None for each row",
}
"""How to fix the rows, by reason; for the message that ends a run."""


class RawRow(NamedTuple):
    """A row as it lies in the file, and its source: "rows.jsonl:12" or "rows.parquet row 12" (from 1)."""

    row: dict[str, Any]
    source: str
    padded: frozenset[str] = frozenset()
    """Columns of structs, which have every key in every row: null may stand for one that was never written."""


def characters_in(row: Any) -> int:
    """Of all texts in a row, keys left out."""
    if isinstance(row, str | bytes):
        return len(row)
    inside = row.values() if isinstance(row, dict) else row if isinstance(row, list) else ()
    return sum(map(characters_in, inside))


class BadRow(NamedTuple):
    """A row that cannot be read: the code from `REASONS`, what is wrong, and its source."""

    reason: str
    detail: str
    source: str


def read_file(path: Path) -> Iterator[RawRow | BadRow]:
    """Yield the rows of one file in order, good and bad, by its ending.

    Raises:
        DataError: unknown ending, UTF-16, or damaged in a way that leaves nothing to go on with.
    """
    reader = READERS[file_kind(path)]
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: cannot be read (a folder, a pipe or a device, not a file)")
    read = 0
    try:
        for row in reader(path):
            read += 1
            yield row
    except DAMAGE as error:
        raise DataError(
            f"{path}: damaged {path.suffix} file ({error}); {read} rows were read before the damage; "
            "is the download complete?"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def bad_rows_error(bad: Sequence[BadRow], total: int) -> DataError:
    """The one error that names bad rows: the first few with their sources, how many more, and the fix.

    Args:
        bad: the rows, or just the first of them.
        total: how many there are in all.
    """
    shown = "".join(f"\n  {row.source}: {row.detail or REASONS[row.reason]}" for row in bad[:LINES_SHOWN])
    more = f"\n  and {total - LINES_SHOWN} more" if total > LINES_SHOWN else ""
    fixes = "; ".join(dict.fromkeys(FIXES[row.reason] for row in bad if row.reason in FIXES))
    return DataError(
        f"{total} row(s) cannot be read:{shown}{more}\n"
        f"Repair or delete them{f' ({fixes})' if fixes else ''}, or leave them out with data.on_bad_row: skip."
    )


def file_kind(path: Path) -> str:
    """The ending that decides how `path` is read, such as ".jsonl" for "rows.JSONL.gz".

    Raises:
        DataError: an ending that we do not read.
    """
    kind = _ending(path)
    if kind in RUNS_CODE:
        raise DataError(
            f"{path}: {kind} files are not read, since reading them can run code that they hold, and nothing is "
            "executed from a data set; save the rows as .jsonl or .parquet"
        )
    if kind not in READERS:
        raise DataError(f"{path}: cannot read {kind or 'a file without ending'}; supported are {supported_endings()}")
    return kind


def is_supported(path: Path) -> bool:
    """Whether `read_file` knows the ending."""
    return _ending(path) in READERS


def supported_endings() -> str:
    """The known endings as a phrase for messages."""
    return f"{', '.join(READERS)} (text formats also as {' and '.join(PACKED_ENDINGS)})"


def _ending(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED_ENDINGS:
        packed = suffixes[-2] if len(suffixes) > 1 else ""
        return packed if packed in READERS and packed not in BINARY_ENDINGS else suffixes[-1]
    return suffixes[-1] if suffixes else ""


def _read_json(path: Path) -> Iterator[RawRow | BadRow]:
    """An array of rows, {"data": [rows]}, a single row, or JSON lines under the wrong ending."""
    with open_bytes(path) as stream:
        data = stream.read(LARGE_JSON + 1)
    refuse_utf16(data, path)
    if len(data) > LARGE_JSON:
        first_line = data[: data.find(b"\n") + 1]
        del data
        yield from _read_json_lines(path) if _is_json_object(first_line) else _read_large_json(path)
        return
    decoder = Decoder()
    try:
        value = decoder.decode(data.decode("utf-8-sig"))
        rows = rows_of(value) if isinstance(value, dict) else value
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{number}: {_encoding_problem(error)}; {FIXES['broken_unicode']}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            yield from _read_json_lines(path)  # several values one after the other: JSON lines
            return
        if not isinstance(error, json.JSONDecodeError | RecursionError | DoubledKey):  # of `rows_of`
            raise DataError(f"{path}: {error}") from error
        raise DataError(f"{path}: {_json_problem(error)}; is the file complete?") from error
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds a single {type(value).__name__}; expected an array of objects, [{{...}}, ...]")
    if decoder.doubled and (rows is value or rows is value.get("data")):  # once more: in which row?
        yield from _read_large_json(path)
        return
    for number, row in enumerate(rows, 1):
        yield _once(decoder, row, f"{path} row {number}")


def _read_large_json(path: Path) -> Iterator[RawRow | BadRow]:
    read = 0
    try:
        unpacked = open_bytes(path)
        with io.TextIOWrapper(unpacked, encoding="utf-8-sig", newline="") as text:
            decoder = Decoder()
            for read, value in enumerate(array_items(text, decoder), 1):
                refuse_bomb(path, unpacked.tell())
                yield _once(decoder, value, f"{path} row {read}")
    except (ValueError, RecursionError) as error:
        what = error.msg if isinstance(error, json.JSONDecodeError) else _json_problem(error)
        raise DataError(f"{path}: after row {read}: {what}; is the file complete?") from error


def _read_json_lines(path: Path) -> Iterator[RawRow | BadRow]:
    decoder = Decoder()
    for number, line in lines(path):
        source = f"{path}:{number}"
        if len(line) > LINE_BYTES:
            yield BadRow("line_too_long", f"longer than {LINE_BYTES // 2**20} MiB", source)
            continue
        try:
            text = line.decode().removeprefix("\ufeff").rstrip()  # the mark also stands where two files were joined
            if text:
                yield _checked(decoder.once(text), source, text)
        except UnicodeDecodeError as error:
            yield BadRow("broken_unicode", _encoding_problem(error), source)
        except (ValueError, RecursionError) as error:
            yield BadRow("bad_json", _json_problem(error), source)


def _once(decoder: Decoder, value: object, source: str) -> RawRow | BadRow:
    """A parsed value as a row, unless the decoder has just seen a key twice."""
    if decoder.doubled:
        return BadRow("bad_json", stands_twice(decoder.doubled), source)
    return _checked(value, source)


def _checked(value: object, source: str, text: str | None = None) -> RawRow | BadRow:
    """A parsed value as a row; `text` is what it was parsed from, for a quick look at its depth."""
    if not isinstance(value, dict):
        return BadRow("not_an_object", f"{type(value).__name__} instead of an object {{...}}", source)
    if (text is None or text.count("[") + text.count("{") > JSON_DEPTH) and is_deep(value):
        return BadRow("bad_json", f"nested more than {JSON_DEPTH} levels deep", source)
    return RawRow(value, source)


def _read_csv(path: Path) -> Iterator[RawRow | BadRow]:
    return _read_table(path, delimiter=",")


def _read_tsv(path: Path) -> Iterator[RawRow | BadRow]:
    return _read_table(path, delimiter="\t")


def _read_table(path: Path, delimiter: str) -> Iterator[RawRow | BadRow]:
    """First line: column names. Every value stays the string that it is."""
    csv.field_size_limit(VALUE_CHARACTERS)  # the standard 128 KiB is less than a long document
    undecodable: list[str] = []  # what is wrong with lines of the row that is being read
    reader = csv.reader(_decoded(path, undecodable), delimiter=delimiter, strict=True)
    names: list[str] = []
    while True:
        undecodable.clear()
        first_line = reader.line_num + 1
        source = f"{path}:{first_line}"
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{source}: {error}; a value that holds quotes, line breaks or separators "
                'needs "quotes" around it, and quotes inside are doubled ("")'
            ) from error
        if values is None:
            return
        if len(values) < 2 and not "".join(values).strip():  # a blank line
            continue
        if not names:
            if undecodable:
                raise DataError(f"{source}: {undecodable[0]}; {FIXES['broken_unicode']}")
            names = _column_names(source, values, delimiter)
        elif undecodable:
            yield BadRow("broken_unicode", undecodable[0], source)
        elif len(values) != len(names):
            yield BadRow("wrong_columns", f"{len(values)} values for {len(names)} columns", source)
        else:
            yield RawRow(dict(zip(names, values, strict=True)), source)


def _decoded(path: Path, undecodable: list[str]) -> Iterator[str]:
    for number, line in lines(path):
        if len(line) > LINE_BYTES:
            raise DataError(f"{path}:{number}: a line longer than {LINE_BYTES // 2**20} MiB; is it a table of text?")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            undecodable.append(_encoding_problem(error))
            yield line.decode(errors="replace")


def _column_names(source: str, values: list[str], delimiter: str) -> list[str]:
    if len(values) > TABLE_COLUMNS:
        raise DataError(f"{source}: {len(values):,} columns; a table of rows to train on has at most {TABLE_COLUMNS:,}")
    names = [value.strip() or f"column {number}" for number, value in enumerate(values, 1)]
    doubled = sorted(name for name, count in Counter(names).items() if count > 1)
    if doubled:
        raise DataError(f"{source}: column {doubled[0]!r} stands twice; give every column its own name")
    other = next((mark for mark in (";", "\t", ",") if mark != delimiter and mark in names[0]), None)
    if len(names) == 1 and other:
        raise DataError(f"{source}: one column only, but it holds {other!r}; save it with {delimiter!r} as separator")
    return names


def numbered(rows: Iterable[TableRow], name: str) -> Iterator[RawRow | BadRow]:
    """Rows that have no lines, with their sources: "NAME row 12"; a text instead of a row says what is wrong."""
    for number, row in enumerate(rows, 1):
        source = f"{name} row {number}"
        yield BadRow("wrong_type", row, source) if isinstance(row, str) else RawRow(row[0], source, row[1])


def _encoding_problem(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 (byte 0x{error.object[error.start]:02x}), probably Latin-1 or Windows-1252"


def _json_problem(error: Exception) -> str:
    if isinstance(error, DoubledKey):
        return str(error)
    if isinstance(error, json.JSONDecodeError):
        where = f"line {error.lineno}, character {error.colno}" if error.lineno > 1 else f"character {error.colno}"
        return f"broken JSON at {where}: {error.msg}"
    return f"broken JSON: {'nested too deeply' if isinstance(error, RecursionError) else error}"


def _is_json_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False


READERS: dict[str, Callable[[Path], Iterator[RawRow | BadRow]]] = {
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": lambda path: numbered(parquet_rows(path), str(path)),
    ".arrow": lambda path: numbered(arrow_rows(path), str(path)),
}
BINARY_ENDINGS = (".parquet", ".arrow")
RUNS_CODE = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".dill", ".npy", ".npz", ".py")
"""Endings of files that are programs, or that are read by running what they say."""
