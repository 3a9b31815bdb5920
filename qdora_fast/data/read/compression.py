"""The bytes of a file as it is, or unpacked from .gz or .zst, in blocks and never as a whole.

A cut .zst gives fewer bytes without a word if it is read through the library's own stream, so frames are
counted here: a file that ends inside one is damaged. Which rows the bytes hold is `readers.py`'s business.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Any, cast

from qdora_fast.system.errors import DataError

PACKED_ENDINGS = (".gz", ".zst")
BLOCK = 8 * 2**10
"""Bytes unpacked at a time: a .zst block can be ten thousand times as large once it is unpacked."""
WIDEST_WINDOW = 2**31
"""Bytes: the window of `zstd --long=31`, the widest there is."""


class DamagedArchive(Exception):
    """A .zst that is cut or corrupt. Not for the user: whoever reads rows says how many came before."""


DAMAGE = (DamagedArchive, gzip.BadGzipFile, EOFError, zlib.error)
"""What reading a damaged .gz or .zst raises."""


def open_bytes(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked if it ends in .gz or .zst; several frames one after the other are one file.

    Raises:
        one of `DAMAGE`, while reading.
    """
    ending = path.suffix.lower()
    if ending == ".gz":
        return cast(IO[bytes], gzip.open(path))
    return io.BufferedReader(_Unpacked(path), 2**20) if ending == ".zst" else path.open("rb")


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, with their numbers from 1 and their line ends. Only a line feed ends a line.

    Raises:
        DataError: UTF-16.
        one of `DAMAGE`, while reading.
    """
    with open_bytes(path) as stream:
        for number, line in enumerate(stream, 1):
            if number == 1:
                refuse_utf16(line, path)
            yield number, line


def refuse_utf16(head: bytes, path: Path) -> None:
    """Raise DataError if a file with these first bytes is UTF-16: by its mark, or by its first two characters."""
    zeros = [byte == 0 for byte in head[:4]]
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or zeros in ([False, True] * 2, [True, False] * 2):
        raise DataError(f"{path}: UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8 {path.name} > utf8{path.suffix}")


class _Unpacked(io.RawIOBase):
    """A .zst file as a stream of unpacked bytes."""

    def __init__(self, path: Path) -> None:
        self._blocks = _unpacked_blocks(path)
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as the next block goes; 0 at the end."""
        while not self._ready:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._ready = memoryview(block)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        """Close the packed file, too."""
        self._blocks.close()
        super().close()


def _unpacked_blocks(path: Path) -> Generator[bytes]:
    import zstandard

    unpacker = zstandard.ZstdDecompressor(max_window_size=WIDEST_WINDOW)
    frame = None
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            while block:
                frame = frame or unpacker.decompressobj()
                try:
                    yield frame.decompress(block)
                except zstandard.ZstdError as error:
                    raise DamagedArchive(str(error)) from error
                block = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    if frame is not None:
        raise DamagedArchive("it ends in the middle")
