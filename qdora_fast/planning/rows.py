"""A glance at the rows of local files: how many there are and how long. No tokenizer, no filter; seconds at most.

The first rows are read and measured; the rest of a large file is counted by its size. Tokens are a guess, four bytes
of UTF-8 each. `qdora-fast data` counts exactly.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from qdora_fast.config import DataSettings, SourceSettings
from qdora_fast.data.read.folders import folder_files
from qdora_fast.data.read.readers import RawRow, is_supported, read_file
from qdora_fast.system.errors import DataError
from qdora_fast.system.paths import local_path

LOOKED_AT = 200
"""Rows that are measured of each file."""
COUNTED_BYTES = 16 * 2**20
"""Bytes up to which a file's rows are counted one by one."""
TOKEN_BYTES = 4
PACKED = (".gz", ".zst", ".parquet", ".arrow")
"""Endings of files whose size says nothing about the number of rows."""


@dataclass(frozen=True)
class RowFacts:
    """What a glance tells."""

    rows: int
    """Rows that are trained on, without those held out; filters and duplicates are not considered."""
    exact: bool
    """Counted, not estimated by size."""
    median_tokens: int
    mean_tokens: float
    too_long: float
    """Share of the measured rows that are longer than `model.max_length` allows."""


@dataclass(frozen=True)
class Measured:
    """Rows that were glanced at."""

    rows: float
    """How many there are, held-out ones included, each source times its weight."""
    exact: bool
    lengths: tuple[int, ...]
    """In tokens, of the first ones of each file."""

    def facts(self, data: DataSettings, max_length: int) -> RowFacts:
        """What that comes to where rows may have so many tokens."""
        cut = data.on_long == "truncate"
        limit = max_length if cut else int(data.filters.max_fraction * max_length)
        long = sum(length > limit for length in self.lengths) / len(self.lengths)
        kept = [min(length, limit) for length in self.lengths if cut or length <= limit] or [limit]
        rows = max(1, round(self.rows * (1 - data.held_out)))
        return RowFacts(rows, self.exact, int(statistics.median(self.lengths)), statistics.fmean(kept), long)


def glance(data: DataSettings) -> Measured | None:
    """Look at the rows; None where they are not in local files, or cannot be read (`data` and `train` say why)."""
    total, exact, lengths = 0.0, True, []
    try:
        for source in data.mixture:
            seen = _look(source)
            if seen is None:
                return None
            count, counted, measured = seen
            total, exact = total + count * source.weight, exact and counted
            lengths += measured
    except (DataError, OSError):
        return None
    return Measured(total, exact, tuple(lengths)) if lengths else None


def _look(source: SourceSettings) -> tuple[int, bool, list[int]] | None:
    """Rows, whether they were counted, and the lengths of the first."""
    if source.path == "demo":
        from qdora_fast.data.demo.world import rows

        demo = list(islice(rows(), source.max_rows))
        return len(demo), True, [_tokens(row) for row in demo[:LOOKED_AT]]
    path = local_path(source.path)
    files = folder_files(path, source.split).files if path.is_dir() else (path,) if path.is_file() else ()
    files = tuple(file for file in files if is_supported(file))
    if not files:
        return None
    total, exact, lengths = 0, True, []
    for file in files:
        count, counted, measured = _look_into(file)
        total, exact = total + count, exact and counted
        lengths += measured
    if source.max_rows is not None and source.max_rows <= total:
        return source.max_rows, True, lengths
    return total, exact, lengths


def _look_into(file: Path) -> tuple[int, bool, list[int]]:
    rows = (row.row for row in read_file(file) if isinstance(row, RawRow))
    first = list(islice(rows, LOOKED_AT))
    lengths = [_tokens(row) for row in first]
    size = file.stat().st_size
    if len(first) < LOOKED_AT or size <= COUNTED_BYTES:
        return len(first) + sum(1 for _ in rows), True, lengths
    if file.suffix == ".parquet":
        from pyarrow.parquet import ParquetFile

        return int(ParquetFile(file).metadata.num_rows), True, lengths
    if file.suffix in PACKED:
        return len(first) + sum(1 for _ in rows), True, lengths
    mean = sum(len(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")) + 1 for row in first) / len(first)
    return round(size / mean), False, lengths


def _tokens(row: Any) -> int:
    return max(1, round(sum(len(text.encode("utf-8", "replace")) for text in _texts(row)) / TOKEN_BYTES))


def _texts(value: Any) -> Iterator[str]:
    """Every text in a row, however deep, without the names of its columns."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
