"""Values of JSON as they were written: a key that stands twice is told, and objects of columns become rows.

Python's parser lets the last of two equal keys count, so half of what the row says would be gone. `Decoder` is that
parser with an eye on this.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any


class DoubledKey(ValueError):
    """JSON in which a key stands twice in one object."""


class Decoder(json.JSONDecoder):
    """Python's own, which notes in `doubled` each key that stands twice in one object."""

    def __init__(self) -> None:
        self.doubled: list[str] = []
        super().__init__(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            self.doubled += [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        return values

    def once(self, text: str) -> Any:
        """The value of a text.

        Raises:
            DoubledKey: a key stands twice.
            ValueError: not JSON.
        """
        self.doubled.clear()
        value = self.decode(text)
        if self.doubled:
            raise DoubledKey(stands_twice(self.doubled))
        return value


def parse(text: str) -> Any:
    """The value of a JSON text; see `Decoder.once`."""
    return Decoder().once(text)


def stands_twice(doubled: list[str]) -> str:
    """What is wrong with an object of such keys."""
    return f"key {doubled[0][:80]!r} stands twice in one object; remove one of the two"


def rows_of(value: Mapping[str, Any]) -> list[Any]:
    """The rows of a file that is one object: of {"data": [rows]}, of columns, of a pandas table, or the object itself.

    pandas writes {column: {"0": value}} (its default), {"0": {column: value}} (index), {"columns", "data"} (split) and
    {"schema", "data"} (table). Columns are lists of equal length.

    Raises:
        ValueError: columns of different lengths, or an object of objects that may be either.
    """
    data, names = value.get("data"), value.get("columns")
    if isinstance(data, list):
        if isinstance(names, list) and data and all(isinstance(row, list) and len(row) == len(names) for row in data):
            return [dict(zip(map(str, names), row, strict=True)) for row in data]
        return data
    columns = list(value.values())
    if columns and all(isinstance(column, list) for column in columns) and not any(map(_has_objects, columns)):
        return _from_lists(value)
    if len(columns) > 1 and all(isinstance(column, dict) and column for column in columns):
        return _from_objects(value)
    return [value]


def _from_lists(columns: Mapping[str, list[Any]]) -> list[Any]:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name[:40]} has {length:,}" for name, length in list(lengths.items())[:8])
        raise ValueError(f"an object of columns of different lengths ({said}); write [{{...}}, ...], one object a row")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _from_objects(objects: Mapping[str, dict[str, Any]]) -> list[Any]:
    inside = [list(each) for each in objects.values()]
    if all(keys == inside[0] for keys in inside) and all(key.isdigit() for key in inside[0]):
        return [{name: column[key] for name, column in objects.items()} for key in inside[0]]
    if all(key.isdigit() for key in objects):
        return list(objects.values())
    names = ", ".join(key[:40] for key in list(objects)[:3])
    raise ValueError(
        f"an object of objects ({names}, ...), not rows; write [{{...}}, ...], one object a row: if each of these is a "
        "row, json.dump(list(rows.values()), file)"
    )


def _has_objects(column: list[Any]) -> bool:
    """Whether a list holds objects: the messages or tools of a single row."""
    return any(isinstance(each, dict) for each in column)
