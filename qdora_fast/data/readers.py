"""One file in, raw rows out, each with the place where it stands.

The text formats are read line by line by hand instead of through `datasets.load_dataset`, for two
reasons: a broken line is then named by its number, and CSV values stay the strings they are
(pandas underneath turns the answers "NA", "null" and "007" into nothing, nothing and 7).
Binary tables go through pyarrow and datasets.

A line that cannot be parsed means a damaged file: all such lines are named in one error. A row that
parses but is no use as training data is not decided here.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from qdora_fast.errors import DataError

LINES_SHOWN = 5
ONE_GIB = 2**30


class RawRow(NamedTuple):
    """A row as it lies in the file, and where: "rows.jsonl:12" or "rows.parquet row 12" (from 1)."""

    row: dict[str, Any]
    place: str


def read_file(path: Path) -> Iterator[RawRow]:
    """Yield the rows of one file, chosen by its ending.

    Raises:
        DataError: unknown ending, wrong encoding, or lines that cannot be parsed (with their numbers).
    """
    return READERS[file_kind(path)](path)


def file_kind(path: Path) -> str:
    """The ending that decides how `path` is read, such as ".jsonl" for "rows.JSONL.gz".

    Raises:
        DataError: an ending that we do not read.
    """
    kind = _ending(path)
    if kind not in READERS:
        raise DataError(f"{path}: cannot read {kind or 'a file without ending'}; supported are {supported_endings()}")
    return kind


def is_supported(path: Path) -> bool:
    """Whether `read_file` knows the ending."""
    return _ending(path) in READERS


def supported_endings() -> str:
    """The known endings as a phrase for messages."""
    return f"{', '.join(READERS)} (text formats also as .gz)"


def _ending(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        zipped = suffixes[-2] if len(suffixes) > 1 else ""
        return ".gz" if zipped in BINARY_ENDINGS else zipped
    return suffixes[-1] if suffixes else ""


def _read_json(path: Path) -> Iterator[RawRow]:
    """An array of rows, {"data": [rows]}, a single row, or JSON lines under the wrong ending."""
    text = "".join(line for _, line in _text_lines(path))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            yield from _read_json_lines(path)  # several values one after the other: JSON lines
            return
        raise DataError(f"{path}: {_json_problem(error)}; is the file complete?") from error
    if isinstance(value, dict):
        value = value["data"] if isinstance(value.get("data"), list) else [value]
    if not isinstance(value, list):
        raise DataError(f"{path}: holds a single {type(value).__name__}; expected an array of objects, [{{...}}, ...]")
    strangers = [number for number, row in enumerate(value, 1) if not isinstance(row, dict)]
    if strangers:
        shown = ", ".join(map(str, strangers[:LINES_SHOWN]))
        raise DataError(f"{path}: {len(strangers)} rows are not objects (rows {shown}); expected [{{...}}, ...]")
    for number, row in enumerate(value, 1):
        yield RawRow(row, f"{path} row {number}")


def _read_json_lines(path: Path) -> Iterator[RawRow]:
    problems: list[str] = []
    for number, line in _text_lines(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"{path}:{number}: {_json_problem(error)}")
            continue
        if not isinstance(value, dict):
            problems.append(f"{path}:{number}: {type(value).__name__} instead of an object {{...}}")
        elif not problems:
            yield RawRow(value, f"{path}:{number}")
    _raise_all(problems, "each line must hold one JSON object; repair or delete these lines")


def _read_csv(path: Path) -> Iterator[RawRow]:
    return _read_table(path, delimiter=",")


def _read_tsv(path: Path) -> Iterator[RawRow]:
    return _read_table(path, delimiter="\t")


def _read_table(path: Path, delimiter: str) -> Iterator[RawRow]:
    """First line: column names. Every value stays the string that it is."""
    csv.field_size_limit(ONE_GIB)  # the standard 128 KiB is less than a long document
    reader = csv.reader((line for _, line in _text_lines(path)), delimiter=delimiter, strict=True)
    names: list[str] = []
    problems: list[str] = []
    while True:
        first_line = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{path}:{first_line}: {error}; a value that holds quotes, line breaks or separators "
                'needs "quotes" around it, and quotes inside are doubled ("")'
            ) from error
        if values is None:
            break
        if not values:  # a blank line
            continue
        if not names:
            names = _column_names(path, values, delimiter)
        elif len(values) != len(names):
            problems.append(f"{path}:{first_line}: {len(values)} values for {len(names)} columns")
        elif not problems:
            yield RawRow(dict(zip(names, values, strict=True)), f"{path}:{first_line}")
    _raise_all(problems, 'put "quotes" around values that hold a separator or a line break')


def _column_names(path: Path, values: list[str], delimiter: str) -> list[str]:
    names = [value.strip() or f"column {number}" for number, value in enumerate(values, 1)]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise DataError(f"{path}:1: column {doubled[0]!r} stands twice; give every column its own name")
    other = next((mark for mark in (";", "\t", ",") if mark != delimiter and mark in names[0]), None)
    if len(names) == 1 and other:
        raise DataError(f"{path}:1: one column only, but it holds {other!r}; save it with {delimiter!r} as separator")
    return names


def _read_parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield RawRow(row, f"{path} row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}); is the download complete?") from error


def _read_arrow(path: Path) -> Iterator[RawRow]:
    import pyarrow
    from datasets import Dataset

    try:
        table = Dataset.from_file(str(path))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Arrow stream ({error})") from error
    for number, row in enumerate(table, 1):
        yield RawRow(cast(dict[str, Any], row), f"{path} row {number}")


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file with their numbers from 1; a byte order mark is dropped.

    Raises:
        DataError: not UTF-8 (with the line and the likely encoding), or a damaged .gz.
    """
    try:
        with _open_bytes(path) as stream:
            for number, line in enumerate(stream, 1):
                yield number, _decode(line, path, number)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged .gz file ({error}); is the download complete?") from error


def _open_bytes(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def _decode(line: bytes, path: Path, number: int) -> str:
    if number == 1 and (line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in line[:64]):
        raise DataError(f"{path}: UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8 {path.name} > utf8{path.suffix}")
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number}: not UTF-8 (byte 0x{line[error.start]:02x}), probably Latin-1 or Windows-1252; "
            f"convert it: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8{path.suffix}"
        ) from error


def _json_problem(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        where = f"line {error.lineno}, character {error.colno}" if error.lineno > 1 else f"character {error.colno}"
        return f"broken JSON at {where}: {error.msg}"
    return f"broken JSON: {'nested too deeply' if isinstance(error, RecursionError) else error}"


def _raise_all(problems: list[str], fix: str) -> None:
    if problems:
        shown = "\n  ".join(problems[:LINES_SHOWN])
        more = f"\n  and {len(problems) - LINES_SHOWN} more" if len(problems) > LINES_SHOWN else ""
        raise DataError(f"{len(problems)} unreadable line(s); {fix}:\n  {shown}{more}")


READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
BINARY_ENDINGS = (".parquet", ".arrow")
