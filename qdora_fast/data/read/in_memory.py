"""Rows that a Python program holds: a DataFrame, a list, a `datasets.Dataset`. Cached, and read as a file.

A file, so that all that holds for files holds for them: the version of the data, the cache of prepared rows, a resumed
run, which compares its settings. It is named by the SHA-256 of its bytes: the same rows are the same file. JSON lines
and not Parquet, because a row then stays what it is: a column of Parquet has one type, and each object in it every key
that any has, with null. Where rows come from such a table (Arrow, polars, `datasets`, or what pandas has read from
Parquet), keys with null are left out below the columns, as the reader of a Parquet file leaves them out of tools.

What JSON has no value for becomes text (dates, decimals) or a blank (NaN, NaT, NA in a column); all else, such as a
picture, is an error that names row and column. The files used last remain.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from datetime import date, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from enum import Enum
from itertools import islice
from pathlib import Path, PurePath
from typing import Any
from uuid import UUID

from qdora_fast.data.read.json_values import rows_of
from qdora_fast.data.read.media import MEDIUM
from qdora_fast.data.read.tables import dataset_rows, table_rows
from qdora_fast.data.read.tool_calls import without_padding
from qdora_fast.system.disk import disk_errors
from qdora_fast.system.errors import ConfigError, DataError, first_line
from qdora_fast.system.hardware import cache_folder

NAME = "rows in memory"
KINDS = (
    "a list of dictionaries, a DataFrame (pandas, polars; .collect() a lazy one), a pyarrow.Table or a datasets.Dataset"
)
FILES, SECONDS = 30, 86_400
"""Files that remain, and those that are younger remain in any case."""
_STEM = re.compile(r"(?P<name>.+)-[0-9a-f]{16}")
_TEXTS = (date, time_of_day, timedelta, Decimal, UUID, PurePath)


def store(
    rows: object, name: str = NAME, *, most: int | None = None, on_rows: Callable[[int], None] = lambda count: None
) -> Path:
    """Write rows to the cache; returns the file.

    Args:
        rows: one of KINDS, a dictionary of columns, or anything else that gives one row after the other.
        name: what messages call them.
        most: rows that are written at most; None: all.
        on_rows: called with the number of rows written since the last call.

    Raises:
        ConfigError: no rows, or the cache cannot be written to.
        DataError: a value that no row can have.
    """
    folder = cache_folder() / "rows"
    digest = hashlib.sha256()
    found = _rows(rows, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, building = tempfile.mkstemp(prefix=".", suffix=".jsonl", dir=folder)
    except OSError as error:
        raise ConfigError(
            f"cannot write {name} to {folder}: {error.strerror}; set QDORA_FAST_CACHE to a folder you can write to"
        ) from error
    try:
        with disk_errors(folder), os.fdopen(handle, "wb") as file:
            for number, row in enumerate(islice(found, most), 1):
                line = _line(row, f"{name}: row {number}")
                digest.update(line)
                file.write(line)
                on_rows(1)
        path = folder / f"{name.replace(' ', '_')}-{digest.hexdigest()[:16]}.jsonl"
        Path(building).replace(path)
    finally:
        Path(building).unlink(missing_ok=True)
    os.utime(path)
    _forget_old(folder)
    return path


def name_of(path: str | Path) -> str | None:
    """What the rows of a file are called that `store` has written; None: it is another file."""
    file = Path(path)
    stem = _STEM.fullmatch(file.stem)
    ours = stem is not None and file.suffix == ".jsonl" and file.parent == cache_folder() / "rows"
    return stem["name"].replace("_", " ") if ours and stem else None


def shown(path: str) -> str:
    """What messages call a source: its path, or what rows in memory are called."""
    return name_of(path) or path


def _forget_old(folder: Path) -> None:
    files = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in files[FILES:]:
        if path.stat().st_mtime < time.time() - SECONDS:
            path.unlink(missing_ok=True)


class _OfTable:
    """A value of a table whose objects have every key."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _rows(rows: Any, name: str) -> Iterator[Any]:
    """Row by row, by what the object can do."""
    if isinstance(rows, str | bytes | os.PathLike):
        raise ConfigError(f"{name}: got {str(rows)[:80]!r}; a file, a folder or a hub id goes into data.path")
    if isinstance(rows, Mapping) and rows and all(hasattr(each, "features") for each in rows.values()):
        splits = ", ".join(map(str, rows))
        raise ConfigError(f"{name}: got all splits ({splits}) of a data set; give one of them, dataset[SPLIT]")
    try:
        return _by_kind(rows, name)
    except (TypeError, NotImplementedError):
        raise ConfigError(f"{name}: rows are of type {type(rows).__name__}; give {KINDS}") from None
    except ValueError as error:
        raise ConfigError(f"{name}: {first_line(error)}; give {KINDS}") from None


def _by_kind(rows: Any, name: str) -> Iterator[Any]:
    import pyarrow

    if hasattr(rows, "cast_column") and hasattr(rows, "with_format"):  # of `datasets`, streamed ones included
        rows = rows.with_format(None)
        return _of_table(dataset_rows(rows, name), name) if rows.features else iter(rows)
    if hasattr(rows, "iloc") and hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        return _of_pandas(rows)
    if hasattr(rows, "__arrow_c_stream__"):
        return _of_table(table_rows(pyarrow.table(rows)), name)
    if hasattr(rows, "__arrow_c_array__"):
        return _of_table(table_rows(pyarrow.Table.from_batches([pyarrow.record_batch(rows)])), name)
    if hasattr(rows, "__dataframe__"):
        from pyarrow.interchange import from_dataframe

        return _of_table(table_rows(from_dataframe(rows)), name)
    if isinstance(rows, Mapping):
        return iter(rows_of({str(key): list(each) if _is_column(each) else each for key, each in rows.items()}))
    if not hasattr(rows, "__iter__") and not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
        raise TypeError
    return iter(rows)


def _is_column(value: Any) -> bool:
    return isinstance(value, tuple) or hasattr(value, "tolist")


def _of_table(rows: Iterable[Any], name: str) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows, 1):
        if isinstance(row, str):
            raise DataError(f"{name}: row {number}: {row}")
        values, structs = row
        yield {key: _OfTable(value) if key in structs else value for key, value in values.items()}


def _of_pandas(frame: Any) -> Iterator[dict[str, Any]]:
    """An index that has a name is a column, too.

    Raises:
        ValueError: a column stands twice.
    """
    frame = frame.reset_index([name for name in frame.index.names if name is not None and name not in frame.columns])
    doubled = frame.columns[frame.columns.duplicated()]
    if len(doubled):
        raise ValueError(f"column {doubled[0]!r} stands twice")
    return _records(frame)


def _records(frame: Any) -> Iterator[dict[str, Any]]:
    names = list(map(str, frame.columns))
    for start in range(0, len(frame), 1024):
        part = frame.iloc[start : start + 1024]
        columns = [part.iloc[:, number].tolist() for number in range(len(names))]
        yield from (dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True))


def _line(row: Any, place: str) -> bytes:
    try:
        if isinstance(row, Mapping):
            plain = {str(key): _top(value, f"{place}, column {str(key)[:80]!r}") for key, value in row.items()}
        else:
            plain = _plain(row, place)
        text = json.dumps(plain, ensure_ascii=False)
    except (RecursionError, ValueError) as error:
        raise DataError(f"{place}: nested too deeply, or it holds itself ({first_line(error)})") from None
    return text.encode(errors="surrogatepass") + b"\n"  # half a surrogate is the reader's to name


def _top(value: Any, place: str) -> Any:
    """The value of a column: what pandas writes for a missing one is none."""
    import pandas

    if not isinstance(value, str) and pandas.api.types.is_scalar(value) and pandas.isna(value):
        return None
    if isinstance(value, _OfTable):
        return without_padding(_plain(value.value, place))
    return _plain(value, place)


def _plain(value: Any, place: str) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Enum):
        return _plain(value.value, place)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        if set(value) == MEDIUM and isinstance(value["bytes"], bytes):  # a picture or a sound: its row is refused
            return {"bytes": f"{len(value['bytes'])} bytes", "path": value["path"] or ""}
        return {str(key): _plain(each, place) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, place) for each in value]
    if hasattr(value, "tolist"):  # numpy: a number, or the list of a column that was read from a table
        return without_padding(_plain(value.tolist(), place))
    if isinstance(value, _TEXTS):
        return value.isoformat() if isinstance(value, date | time_of_day) else str(value)
    if hasattr(value, "model_dump"):
        return _plain(value.model_dump(exclude_none=True), place)
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value), place)
    hint = "; decode it to text" if isinstance(value, bytes) else ", only text is trained on"
    raise DataError(
        f"{place}: {type(value).__name__} cannot be the type of a row's value{hint}: give text, numbers, booleans, "
        "None, lists or dictionaries"
    )
