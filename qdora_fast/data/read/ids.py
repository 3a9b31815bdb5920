"""Rows that carry the id of an earlier row: often a set that was joined twice. They are counted, not dropped.

What two such rows say is compared elsewhere; an id that repeats over different texts can be right (the turns of
one conversation), so this is information for a person.
"""

from __future__ import annotations

from typing import Any

import xxhash

from qdora_fast.data.read.readers import RawRow

ID_COLUMNS = ("id", "_id", "uuid", "row_id")
EXAMPLES_SHOWN = 3


class IdCheck:
    """Sees the raw rows of one source; keeps 8 bytes for each id."""

    def __init__(self) -> None:
        self.column: str | None = None
        """The first of `ID_COLUMNS` that the first row has; None: it has none of them."""
        self.count = 0
        """Rows with the id of an earlier one."""
        self.examples: list[str] = []
        """The first three of them: "rows.jsonl:17 has the id of an earlier row"."""
        self._seen: set[int] = set()
        self._started = False

    def see(self, raw: RawRow) -> None:
        """Look at one row; a blank id is none."""
        if not self._started:
            self._started = True
            self.column = next((column for column in ID_COLUMNS if column in raw.row), None)
        if self.column is None:
            return
        value = _as_text(raw.row.get(self.column))
        if not value:
            return
        digest = xxhash.xxh3_64_intdigest(value.encode("utf-8", "surrogatepass"))
        if digest not in self._seen:
            self._seen.add(digest)
            return
        self.count += 1
        if len(self.examples) < EXAMPLES_SHOWN:
            self.examples.append(f"{raw.source} has the id of an earlier row")


def _as_text(value: Any) -> str:
    blank = value is None or value != value  # NaN, which tables use for no value
    return "" if blank else str(value).strip()
