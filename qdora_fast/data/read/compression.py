"""The bytes of a file as it is, or unpacked from .gz or .zst, in blocks and never as a whole.

A cut file must not be taken for a short one, so both libraries are used through streams that raise at an end in the
middle. What unpacks to far more than text ever does, and lines without an end, are stopped at the limits of
`limits.py`. Which rows the bytes hold is `readers.py`'s business.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from backports import zstd

from qdora_fast.system.errors import DataError
from qdora_fast.system.limits import (
    BLANK_LINES,
    LINE_BYTES,
    UNPACKED_BYTES,
    UNPACKED_OF_LONG_LINE,
    UNPACKED_PER_PACKED_BYTE,
)
from qdora_fast.system.paths import open_regular

PACKED_ENDINGS = (".gz", ".zst")
WIDEST_WINDOW = 31
"""Of a .zst, as a power of two in bytes: that of `zstd --long=31`, the widest there is."""

DAMAGE = (zstd.ZstdError, gzip.BadGzipFile, EOFError, zlib.error)
"""What reading a damaged .gz or .zst raises."""


def open_bytes(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked if it ends in .gz or .zst; several frames one after the other are one file.

    Raises:
        OSError: no regular file.
        one of `DAMAGE`, while reading.
    """
    ending = path.suffix.lower()
    packed = open_regular(path)
    if ending not in PACKED_ENDINGS or path.stat().st_size == 0:
        return packed
    if ending == ".gz":
        return cast(IO[bytes], gzip.open(packed))
    return cast(IO[bytes], zstd.open(packed, options={zstd.DecompressionParameter.window_log_max: WIDEST_WINDOW}))


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, with their numbers from 1 and their line ends. Only a line feed ends a line.

    Of a line longer than `LINE_BYTES` the first `LINE_BYTES + 1` bytes are given, and the rest is skipped.

    Raises:
        DataError: UTF-16, the file unpacks to too much, or `BLANK_LINES` follow one another.
        one of `DAMAGE`, while reading.
    """
    number = unpacked = blank = 0
    with open_bytes(path) as stream:
        while line := stream.readline(LINE_BYTES + 1):
            number += 1
            if number == 1:
                refuse_utf16(line, path)
            unpacked += len(line)
            refuse_bomb(path, unpacked)
            blank = blank + 1 if line.isspace() else 0
            if blank > BLANK_LINES:
                raise DataError(f"{path}:{number}: {blank:,} blank lines in a row; remove them, or take another file")
            yield number, line
            while len(line) > LINE_BYTES and not line.endswith(b"\n"):
                line = stream.readline(LINE_BYTES + 1)
                unpacked += len(line)
                refuse_bomb(path, unpacked, UNPACKED_OF_LONG_LINE)


def refuse_bomb(path: Path, unpacked: int, most: int | None = None) -> None:
    """Raise DataError when a packed file unpacks to more than `most` times its size, which text does not do."""
    most = most or UNPACKED_PER_PACKED_BYTE
    if unpacked > UNPACKED_BYTES and unpacked > most * path.stat().st_size:
        raise DataError(
            f"{path}: unpacks to more than {most:,} times its size, which text does not do; if that is what it should "
            "hold, save it as plain .jsonl and name that"
        )


def refuse_utf16(head: bytes, path: Path) -> None:
    """Raise DataError if a file with these first bytes is UTF-16: by its mark, or by its first two characters."""
    zeros = [byte == 0 for byte in head[:4]]
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or zeros in ([False, True] * 2, [True, False] * 2):
        raise DataError(f"{path}: UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8 {path.name} > utf8{path.suffix}")
