"""What of a row was read, and what was not: the keys that no converter has asked for, counted over a source.

A converter gets a row as `Fields`, which notes each key that is asked for; messages, tool calls and parts of a content
are `Fields` of their own below it. What is left over is therefore known for every format without a list of names. A
blank value counts as none. Whether what is left over matters is told by what it holds: a text that says what the
conversation says anyway (the row rendered before, its first question once more) is a copy; other text may be what the
answers are about, and is pointed out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TEXT_WORDS, TEXT_CHARACTERS = 5, 30
"""Words and characters from which on a value is text, and no label, number, name or address."""
CHARACTERS_PER_WORD = 3
"""In scripts without spaces."""
TEXT_SHARE = 0.1
"""Share of a column's values that are text, from which on the column is one of text."""
NAMES_COUNTED = 200
"""Different unused keys that are counted; rows whose keys are values have one for each row."""
DEEPEST = 20


class Fields:
    """The values of a row, or of an object in it, and which of its keys were read.

    Args:
        padded: columns of a table of structs, in which null may stand for a key that was never written.
    """

    __slots__ = ("_inner", "_read", "_values", "padded")

    def __init__(self, values: Mapping[str, Any], padded: Iterable[str] = ()) -> None:
        self._values, self.padded = values, frozenset(padded)
        self._read: set[str] = set()
        self._inner: list[tuple[str, Fields]] = []

    def get(self, key: str) -> Any:
        """The value of a key, None if there is none; the key counts as read."""
        self._read.add(key)
        return self._values.get(key)

    def peek(self, key: str) -> Any:
        """The same, and the key does not count as read."""
        return self._values.get(key)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        """All keys, read or not."""
        return map(str, self._values)

    def has_only(self, keys: frozenset[str]) -> bool:
        """Whether there is no other key."""
        return self._values.keys() <= keys

    def inner(self, name: str, values: Mapping[str, Any]) -> Fields:
        """An object below this one; what of it is not read is called NAME.key."""
        fields = Fields(values)
        self._inner.append((name, fields))
        return fields

    def unread(self) -> Iterator[tuple[str, Any]]:
        """Name and value of what was not read and is not blank; in a list of objects once for each of them."""
        if not self._values.keys() <= self._read:
            for key, value in self._values.items():
                if key not in self._read and not is_blank(value):
                    yield str(key), value
        for name, fields in self._inner:
            yield from ((f"{name}.{key}", value) for key, value in fields.unread())


@dataclass
class Unused:
    """A key that is not read, over the rows that have a value in it."""

    rows: int = 0
    texts: int = 0
    """Rows in which it is text that stands nowhere in the conversation."""
    words: int = 0
    """Of these texts."""
    first: str = ""
    """The source of the first row."""
    is_nested: bool = False
    """Whether it stands in a message or is a list or object, not one text."""

    def add(self, other: Unused) -> None:
        """Count those of later rows."""
        self.rows, self.texts, self.words = self.rows + other.rows, self.texts + other.texts, self.words + other.words
        self.first, self.is_nested = self.first or other.first, self.is_nested or other.is_nested

    @property
    def is_text(self) -> bool:
        """Whether it holds text that a model may need."""
        return self.texts > 0 and self.texts >= TEXT_SHARE * self.rows


@dataclass
class UnusedFields:
    """What is not read of the rows of one source, by name."""

    rows: int = 0
    """All rows that were read as conversations."""
    by_name: dict[str, Unused] = field(default_factory=dict)

    def see(
        self, unread: Iterable[tuple[str, Any]], read: Sequence[str], source: str, *, beside: Sequence[str] = ()
    ) -> None:
        """Count what one row leaves unread; `read` are the texts of its conversation, `beside` what else was read."""
        self.rows += 1
        seen: dict[str, Unused] = {}
        for name, value in unread:
            words = _words_beyond(value, read, beside) + (seen[name].words if name in seen else 0)
            seen[name] = Unused(1, int(words > 0), words, source, "[]" in name or isinstance(value, list | dict))
        for name, unused in seen.items():
            self._count(name, unused)

    def add(self, other: UnusedFields) -> None:
        """Count those of later rows."""
        self.rows += other.rows
        for name, unused in other.by_name.items():
            self._count(name, unused)

    def _count(self, name: str, unused: Unused) -> None:
        if name in self.by_name or len(self.by_name) < NAMES_COUNTED:
            self.by_name.setdefault(name, Unused()).add(unused)


def is_blank(value: Any, depth: int = 0) -> bool:
    """Whether a value says nothing: null, NaN, "", an empty list or object, or one of nothing else."""
    if value is None or value != value:
        return True
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, dict | list | tuple) and depth < DEEPEST:
        return all(is_blank(each, depth + 1) for each in (value.values() if isinstance(value, dict) else value))
    return False


def texts_of(value: Any, depth: int = 0) -> Iterator[str]:
    """Every text in a value, however deep, without the names of keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple) and depth < DEEPEST:
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts_of(each, depth + 1)


def _words_beyond(value: Any, read: Sequence[str], beside: Sequence[str]) -> int:
    """Words of the texts in a value that are no part of a text that was read, and do not hold all of these; 0: none."""
    words = 0
    for text in texts_of(value):
        count = max(len(text.split()), sum(not each.isascii() for each in text[:1000]) // CHARACTERS_PER_WORD)
        if count < TEXT_WORDS or len(text) < TEXT_CHARACTERS:
            continue
        bare = text.strip()
        is_rendering = bool(read) and bool(read[-1].strip()) and all(each.strip() in bare for each in read)
        if not is_rendering and not any(bare in each for each in (*read, *beside)):
            words += count
    return words
