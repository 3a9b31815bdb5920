"""The objects of a JSON array larger than memory, one after the other.

The standard library's parser is run on a window that moves over the text. It could be ijson, but its fast
parser changes what it reads: half a surrogate pair becomes "?", and integers over 64 bits, NaN and Infinity,
which small files may hold, are errors. Its faithful one is ten times slower than this.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO, Any

from qdora_fast.data.read.json_values import Decoder
from qdora_fast.system.limits import VALUE_CHARACTERS

WINDOW = 2**20
"""Characters read at a time."""
CUT = 16
"""Characters before the end of the window where an error may only mean that a word, an escape or a number is cut."""
BLANK = re.compile(r"[ \t\n\r]*")


def array_items(stream: IO[str], decoder: Decoder | None = None) -> Iterator[Any]:
    """The elements of `[...]`, or of the array in `{"data": [...]}`, whatever they are.

    Args:
        decoder: one whose `doubled` the caller reads after each element.

    Raises:
        ValueError: broken JSON, or of another shape. Elements before it have been given by then.
        RecursionError: nested too deeply.
    """
    scanner = _Scanner(stream, decoder or Decoder())
    if scanner.peek() == "[":
        yield from scanner.array()
    else:
        yield from _array_in_object(scanner)
    if scanner.peek():
        raise ValueError(f"{scanner.peek()!r} after the end of the array")


def _array_in_object(scanner: _Scanner) -> Iterator[Any]:
    scanner.take("{")
    has_rows = False
    while scanner.peek() != "}":
        key = scanner.value()
        scanner.take(":")
        if key == "data" and scanner.peek() == "[":
            yield from scanner.array()
            has_rows = True
        else:
            scanner.value()
        if scanner.peek() != "}":
            scanner.take(",")
    scanner.take("}")
    if not has_rows:
        raise ValueError('neither an array [{...}, ...] nor {"data": [{...}, ...]}')


class _Scanner:
    """A position in a text of which only the part around it is held."""

    def __init__(self, stream: IO[str], decoder: Decoder) -> None:
        self._stream = stream
        self._text = ""
        self._at = 0
        self._decoder = decoder

    def peek(self) -> str:
        """The next character that is not blank; "" at the end."""
        while True:
            self._at = BLANK.match(self._text, self._at).end()  # type: ignore[union-attr]  # matches "", too
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, mark: str) -> None:
        """Step over `mark`."""
        if self.peek() != mark:
            raise ValueError(f"{mark!r} expected, found {self.peek() or 'the end'!r}")
        self._at += 1

    def value(self) -> Any:
        """The next value, which may be larger than the window."""
        self.peek()
        while True:
            self._decoder.doubled.clear()
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - CUT
                if cut and self._more():
                    continue
                raise
            if end > len(self._text) - CUT and self._more():  # a number may go on: 1, 1.5, 1.5e10
                continue
            self._at = end
            return value

    def array(self) -> Iterator[Any]:
        """The elements of the array that begins here."""
        self.take("[")
        while self.peek() != "]":
            yield self.value()
            if self.peek() != "]":
                self.take(",")
                if self.peek() == "]":
                    raise ValueError("a comma before the closing bracket")
        self.take("]")

    def _more(self) -> bool:
        """Read on; twice as much when a value fills the window, so that long values are not parsed too often."""
        rest = self._text[self._at :]
        if len(rest) > VALUE_CHARACTERS:
            raise ValueError(f"a value of more than {VALUE_CHARACTERS / 1e6:,.0f} million characters")
        more = self._stream.read(max(WINDOW, len(rest)))
        if more:
            self._text, self._at = rest + more, 0
        return bool(more)
