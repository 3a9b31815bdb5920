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

from qdora_fast.data.read.compression import refuse_bomb
from qdora_fast.system.errors import DataError
from qdora_fast.system.limits import (
    BATCH_BYTES,
    JSON_DEPTH,
    LINE_BYTES,
    TABLE_COLUMNS,
    TABLE_UNPACKED_PER_PACKED_BYTE,
)
from qdora_fast.system.paths import open_regular

ROWS_AT_ONCE = 1024
PARQUET_ROWS_AT_ONCE = 128
"""Fewer, since nothing says how long they are before they are there."""
TEXTS = ("string", "large_string", "binary", "large_binary")
"""Arrow's names of types that may be read with a dictionary."""
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
        schema = pyarrow.parquet.read_schema(path)
        _refuse_wide(path, schema)
        texts = [field.name for field in schema if str(field.type) in TEXTS]  # a long word of a dictionary is read once
        with pyarrow.parquet.ParquetFile(path, read_dictionary=texts) as table:
            for row in _rows(path, table.iter_batches(batch_size=PARQUET_ROWS_AT_ONCE)):
                read += 1
                yield row
    except (pyarrow.ArrowException, OSError, MemoryError) as error:
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
        with open_regular(path) as file:
            is_file_format = file.read(6) == b"ARROW1"
        if is_file_format:
            table = pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
            _refuse_wide(path, table.schema)
            yield from _rows(path, (table.get_batch(number) for number in range(table.num_record_batches)))
        else:
            yield from dataset_rows(Dataset.from_file(str(path)), str(path))
    except (pyarrow.ArrowException, OSError, MemoryError, *WRONG_FEATURES) as error:
        raise DataError(
            f"{path}: not a readable Arrow stream or file ({_said(error)}); is the download complete?"
        ) from error


def table_rows(table: Any) -> Iterator[TableRow]:
    """The rows of a `pyarrow.Table`."""
    for batch in table.to_batches(max_chunksize=ROWS_AT_ONCE):
        yield from _as_dictionaries(batch, struct_columns(batch.schema))


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


def _refuse_wide(path: Path, schema: Any) -> None:
    """Raise DataError for a schema with more columns, or more deeply nested ones, than rows of text have."""
    if len(schema) > TABLE_COLUMNS:
        raise DataError(f"{path}: {len(schema):,} columns; a table of rows to train on has at most {TABLE_COLUMNS:,}")
    level = [field.type for field in schema]
    for _ in range(JSON_DEPTH):
        level = [kind.field(number).type for kind in level for number in range(kind.num_fields)]
        if len(level) > TABLE_COLUMNS:
            raise DataError(f"{path}: its columns have more than {TABLE_COLUMNS:,} fields; keep those that are trained")
    if level:
        raise DataError(f"{path}: columns nested more than {JSON_DEPTH} levels deep")


def _rows(path: Path, batches: Iterable[Any]) -> Iterator[TableRow]:
    """The rows of batches, as many at a time as `BATCH_BYTES` hold."""
    given = 0
    for batch in batches:
        structs, start = struct_columns(batch.schema), 0
        while start < batch.num_rows:
            part = batch.slice(start, ROWS_AT_ONCE)
            while part.num_rows > 1 and _bytes_of(part) > BATCH_BYTES:
                part = part.slice(0, part.num_rows // 2)
            taken = _bytes_of(part)
            given += taken
            refuse_bomb(path, given, TABLE_UNPACKED_PER_PACKED_BYTE)
            if taken > LINE_BYTES and part.num_rows == 1:
                yield f"a row longer than {LINE_BYTES // 2**20} MiB"
            else:
                yield from _as_dictionaries(part, structs)
            start += part.num_rows


def _bytes_of(batch: Any) -> int:
    """Bytes of the values, where a dictionary's words count each time that they stand in a row."""
    import pyarrow
    from pyarrow import compute

    total = 0
    for column in batch.columns:
        if pyarrow.types.is_dictionary(column.type) and str(column.type.value_type) in TEXTS:
            total += compute.sum(compute.binary_length(column.dictionary).take(column.indices)).as_py() or 0
        else:
            total += column.nbytes
    return int(total)


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
