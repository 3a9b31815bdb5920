"""Prepared rows and their tokens on disk, read as if they were lists.

A set of rows may be larger than memory; a trainer reads it in random order for hours. So rows lie as JSON lines in one
file and tokens as an Arrow table in another, both mapped into memory by the operating system, which keeps what is used
and gives the rest back. `RowWriter` writes them chunk by chunk; `Rows` and `Examples` are views of chosen rows.

What stays in memory is a few numbers a row (`Columns`): about 90 bytes, whatever the length of the text.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, overload

import numpy as np

from qdora_fast.data.read.fields import UnusedFields
from qdora_fast.data.read.messages import Row
from qdora_fast.system.atomic import require_space
from qdora_fast.system.disk import disk_errors

if TYPE_CHECKING:
    from datasets import Dataset

Example = dict[str, list[int]]
"""`input_ids` and `labels`."""

ROWS, TOKENS, SIGNATURES, REJECTED = "rows.jsonl", "tokens.arrow", "signatures.bin", "rejected.jsonl"
SPACE_ASKED = 2**30
"""Bytes of rows after which free space is asked for again."""
OTHER_CACHE = "or set QDORA_FAST_CACHE to a folder on another disk"
"""What else helps where prepared rows cannot be written, for `disk_errors`."""


class Rows(Sequence[Row]):
    """Rows `chosen` from a file of JSON lines, parsed when asked for; `starts` are byte offsets and the end."""

    def __init__(self, path: Path, starts: np.ndarray, chosen: np.ndarray) -> None:
        self._path, self._starts, self.chosen = path, starts, chosen
        self._map: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        row: Row = json.loads(self.line(index))
        return row

    def source_of(self, index: int) -> str:
        """Where the row stands in the user's files, such as rows.jsonl:12."""
        return self[index]["meta"]["source"]

    def line(self, index: int) -> bytes:
        """The row as it lies in the file, line break included."""
        number = int(self.chosen[index])
        if self._map is None:
            with self._path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map[int(self._starts[number]) : int(self._starts[number + 1])]

    def write(self, path: Path) -> None:
        """Copy the chosen rows to a file of their own.

        Raises:
            DiskSpaceError: no room.
        """
        with disk_errors(path), path.open("wb") as file:
            file.writelines(self.line(index) for index in range(len(self)))


class Examples(Sequence[Example]):
    """Tokenised rows: `input_ids` and `labels` of equal length, -100 where nothing is learned."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        example: Example = self._dataset[index]
        return example

    def highest_token(self) -> int:
        """The highest token id of the file that these are chosen from; 0 where it is empty."""
        from pyarrow import compute

        highest = compute.max(compute.list_flatten(self._dataset.data.column("input_ids"))).as_py()
        return int(highest or 0)

    def dataset(self) -> Dataset:
        """The same as a `datasets.Dataset` with the columns input_ids and labels, mapped from the disk."""
        return self._dataset


@dataclass
class Columns:
    """What is known about each usable row, one array entry a row."""

    starts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Bytes of the row's line; after `RowWriter.columns`, its offset, and one entry more than rows."""
    keys: np.ndarray = field(default_factory=lambda: np.zeros((0, 16), np.uint8))
    """`similarity.exact_key` of the row."""
    prompts: np.ndarray = field(default_factory=lambda: np.zeros((0, 16), np.uint8))
    """The same of its normalised prompt."""
    hashes: np.ndarray = field(default_factory=lambda: np.zeros((0, 32), np.uint8))
    """SHA-256 of its content."""
    sizes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Characters."""
    content_tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """Tokens of the contents, without the template; `row_processor.NOT_COUNTED` where no limit can apply."""
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """Tokens as rendered; 0 without a tokenizer."""
    trained: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """Tokens that carry loss."""
    flags: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint16))
    """Bits of `render.FLAGS`."""
    origins: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int16))
    """Which source; the last number is that of `data.held_out_path`, where there is one."""
    scripts: np.ndarray = field(default_factory=lambda: np.zeros(0, "U20"))
    """The dominant script, by its Unicode name."""

    def __len__(self) -> int:
        return len(self.keys)


@dataclass
class Chunk:
    """A few hundred rows after a worker has processed them, in the order of the file."""

    columns: Columns
    lines: bytes = b""
    """The rows as JSON lines."""
    input_ids: np.ndarray | None = None
    """int32: the tokens of all rows, one after the other; `columns.tokens` says how many each has. So `labels`."""
    labels: np.ndarray | None = None
    signatures: np.ndarray | None = None
    """[rows, 256] uint32."""
    groups: list[str | None] = field(default_factory=list)
    strata: list[str] = field(default_factory=list)
    rejected: list[tuple[str, str, str]] = field(default_factory=list)
    """(source, reason, detail) of rows that were dropped."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """(source, what) of what the chat template does not print of rows, see `tokenize/left_out.py`."""
    too_long: list[int] = field(default_factory=list)
    """Tokens of the rows among them that are too long."""
    repairs: dict[str, int] = field(default_factory=dict)
    origin: int = 0
    """The number of its source."""
    unused: UnusedFields = field(default_factory=UnusedFields)
    sampled: list[str] = field(default_factory=list)
    """The beginning of each row's text, from which languages are recognised."""


class RowWriter:
    """Writes chunks below `folder` and holds their columns in memory.

    Raises:
        DiskSpaceError: from `add` and `close`, when the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._chunks: list[Columns] = []
        self._files: dict[str, IO[bytes]] = {name: (folder / name).open("wb") for name in (ROWS, SIGNATURES, REJECTED)}
        self._tokens: Any = None
        self.groups: list[str | None] = []
        self.strata: list[str] = []
        self._bytes, self._asked = 0, SPACE_ASKED

    def add(self, chunk: Chunk) -> None:
        """Append one chunk."""
        self._require_space(len(chunk.lines))
        with disk_errors(self.folder, elsewhere=OTHER_CACHE):
            self._files[ROWS].write(chunk.lines)
            if chunk.signatures is not None:
                self._files[SIGNATURES].write(chunk.signatures.tobytes())
            self.reject(chunk.rejected)
            if chunk.input_ids is not None and chunk.labels is not None:
                self._write_tokens(chunk.columns.tokens, {"input_ids": chunk.input_ids, "labels": chunk.labels})
        self._chunks.append(chunk.columns)
        self.groups += chunk.groups
        self.strata += chunk.strata

    def _require_space(self, more: int) -> None:
        """Ask for the room of another GiB before it is begun: a disk that fills up stops other programs as well."""
        self._bytes += more
        if self._bytes > self._asked:
            self._asked = self._bytes + SPACE_ASKED
            require_space(self.folder, SPACE_ASKED)

    def reject(self, rejected: Sequence[tuple[str, str, str]]) -> None:
        """Write rows that were dropped, each as (source, reason, detail)."""
        keys = ("place", "reason", "detail")
        lines = (json.dumps(dict(zip(keys, each, strict=True)), ensure_ascii=False) for each in rejected)
        self._files[REJECTED].writelines(f"{line}\n".encode() for line in lines)

    def columns(self) -> Columns:
        """All columns, chunks joined; `starts` are now offsets."""
        joined = Columns()
        for each in fields(Columns):
            parts = [getattr(chunk, each.name) for chunk in self._chunks if len(chunk)]
            if parts:
                setattr(joined, each.name, np.concatenate(parts))
        joined.starts = np.concatenate([[0], np.cumsum(joined.starts)]).astype(np.int64)
        return joined

    def rows(self, columns: Columns) -> Rows:
        """All rows that were added; `columns` are those of `columns()`."""
        return Rows(self.folder / ROWS, columns.starts, np.arange(len(columns)))

    def signatures(self, rows: int, width: int) -> np.ndarray:
        """The MinHash signatures [rows, width], mapped from the disk."""
        self._files[SIGNATURES].flush()
        if not rows:
            return np.zeros((0, width), np.uint32)
        return np.memmap(self.folder / SIGNATURES, np.uint32, "r", shape=(rows, width))

    def flush(self) -> None:
        """Make what was added readable."""
        with disk_errors(self.folder, elsewhere=OTHER_CACHE):
            for file in self._files.values():
                file.flush()

    def close(self) -> None:
        """Finish the files, and remove the signatures, which are no longer needed."""
        with disk_errors(self.folder, elsewhere=OTHER_CACHE):
            for file in self._files.values():
                file.close()
            if self._tokens is not None:
                self._tokens.close()
        (self.folder / SIGNATURES).unlink(missing_ok=True)

    def _write_tokens(self, lengths: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        import pyarrow

        offsets = pyarrow.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        lists = {
            name: pyarrow.ListArray.from_arrays(offsets, pyarrow.array(values)) for name, values in columns.items()
        }
        batch = pyarrow.record_batch(lists)
        if self._tokens is None:
            self._tokens = pyarrow.RecordBatchStreamWriter(str(self.folder / TOKENS), batch.schema)
        self._tokens.write_batch(batch)


def open_examples(folder: Path, chosen: np.ndarray) -> Examples | None:
    """The tokens of `chosen` rows; None where the folder holds no tokens."""
    from datasets import Dataset

    if not (folder / TOKENS).is_file():
        return None
    return Examples(Dataset.from_file(str(folder / TOKENS)).select(chosen))
