"""Rows of binary tables: Parquet, Arrow, and data sets that `datasets` has saved or loaded. In batches.

A value that Python cannot hold (text that is not UTF-8, a date in the year 30000) costs its row, not the file.
Images, audio and the like stay the bytes they are: nothing in them is trained on, and decoding them would run large
libraries on files from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from qdora_fast.system.errors import DataError

ROWS_AT_ONCE = 1024
MEDIA = ("Image", "Audio", "Video", "Pdf", "Nifti")

TableRow = tuple[dict[str, Any], frozenset[str]] | str
"""A row and its columns of structs, or what is wrong with it."""


def parquet_rows(path: Path) -> Iterator[TableRow]:
    """The rows of a Parquet file.

    Raises:
        DataError: damaged; says how many rows came before.
    """
    import pyarrow
    import pyarrow.parquet

    read = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for row in _rows(table.iter_batches(batch_size=ROWS_AT_ONCE)):
                read += 1
                yield row
    except (pyarrow.ArrowException, OSError) as error:
        problem = f"{_said(error)}; {read} rows were read before"
        raise DataError(f"{path}: not a readable Parquet file ({problem}); is the download complete?") from error


def arrow_rows(path: Path) -> Iterator[TableRow]:
    """The rows of an Arrow file: the stream that `datasets` writes, or the file that Polars and pandas write.

    Raises:
        DataError: neither of them, or damaged.
    """
    import pyarrow
    from datasets import Dataset

    try:
        with path.open("rb") as file:
            is_file_format = file.read(6) == b"ARROW1"
        if is_file_format:
            table = pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
            yield from _rows(table.get_batch(number) for number in range(table.num_record_batches))
        else:
            yield from dataset_rows(Dataset.from_file(str(path)), str(path))
    except (pyarrow.ArrowException, OSError, *WRONG_FEATURES) as error:
        raise DataError(
            f"{path}: not a readable Arrow stream or file ({_said(error)}); is the download complete?"
        ) from error


def table_rows(table: Any) -> Iterator[TableRow]:
    """The rows of a `pyarrow.Table`."""
    yield from _rows(table.to_batches(max_chunksize=ROWS_AT_ONCE))


WRONG_FEATURES = (ValueError, TypeError, KeyError, AttributeError)
"""What `datasets` raises when the description of the columns that lies beside them is not one."""


def dataset_rows(dataset: Any, name: str) -> Iterator[TableRow]:
    """The rows of a `datasets.Dataset`; media stay as they are stored.

    Raises:
        DataError: a row cannot be decoded.
    """
    read = 0
    try:
        structs = struct_columns(dataset.features.arrow_schema)
        for column, feature in dataset.features.items():
            stored = _undecoded(feature)
            if stored != feature:
                dataset = dataset.cast_column(column, stored)
        for row in dataset:
            read += 1
            yield row, structs
    except (ImportError, OSError, RuntimeError, *WRONG_FEATURES) as error:
        raise DataError(f"{name}: a row after row {read} cannot be decoded ({error!r})") from error


def struct_columns(schema: Any) -> frozenset[str]:
    """The columns of an Arrow schema that are structs, or hold them."""
    return frozenset(field.name for field in schema if _has_struct(field.type))


def _has_struct(kind: Any) -> bool:
    import pyarrow

    inside = [kind.field(number).type for number in range(kind.num_fields)]
    return bool(pyarrow.types.is_struct(kind)) or any(map(_has_struct, inside))


def _undecoded(feature: Any) -> Any:
    """A feature of `datasets` in which no picture or sound is decoded, however deep it lies."""
    if isinstance(feature, dict):
        return {key: _undecoded(each) for key, each in feature.items()}
    if isinstance(feature, list):
        return [_undecoded(each) for each in feature]
    if type(feature).__name__ in MEDIA:
        return replace(feature, decode=False)
    inside = getattr(feature, "feature", None)
    return feature if inside is None else replace(feature, feature=_undecoded(inside))


def _rows(batches: Iterable[Any]) -> Iterator[TableRow]:
    for batch in batches:
        structs = struct_columns(batch.schema)
        for start in range(0, batch.num_rows, ROWS_AT_ONCE):
            yield from _as_dictionaries(batch.slice(start, ROWS_AT_ONCE), structs)


def _as_dictionaries(batch: Any, structs: frozenset[str]) -> list[TableRow]:
    try:
        return [(row, structs) for row in batch.to_pylist()]
    except (ValueError, OverflowError):  # some value of some row: find out which
        return [_as_dictionary(batch.slice(number, 1), structs) for number in range(batch.num_rows)]


def _as_dictionary(single: Any, structs: frozenset[str]) -> TableRow:
    try:
        row: dict[str, Any] = single.to_pylist()[0]
    except (ValueError, OverflowError) as error:
        return f"a value cannot be read: {error}"
    return row, structs


def _said(error: Exception) -> str:
    return " ".join(str(error).split())
