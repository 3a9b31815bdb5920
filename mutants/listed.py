"""The list of faults: read from TOML, checked, put into a file and taken out again."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Fault:
    """One change of one file."""

    id: str
    file: str
    """Path from the project's root."""
    old: str
    """Stands once in the file."""
    new: str
    why: str
    """What goes wrong then."""
    equivalent: str = ""
    """Why nobody can observe it; empty for a fault that a test must notice."""

    def applies(self, root: Path) -> bool:
        """Whether `old` stands exactly once in the file."""
        path = root / self.file
        return path.is_file() and path.read_text(encoding="utf-8").count(self.old) == 1

    @contextmanager
    def applied(self, root: Path) -> Iterator[None]:
        """The file with the fault in it, for the time of the context."""
        path = root / self.file
        before = path.read_text(encoding="utf-8")
        path.write_text(before.replace(self.old, self.new), encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(before, encoding="utf-8")


def read_faults(path: Path) -> list[Fault]:
    """All entries of a list.

    Raises:
        ValueError: an id stands twice, or an entry changes nothing.
        TypeError: a key is missing or unknown.
    """
    faults = [Fault(**entry) for entry in tomllib.loads(path.read_text(encoding="utf-8"))["fault"]]
    ids = [fault.id for fault in faults]
    if twice := sorted({each for each in ids if ids.count(each) > 1}):
        raise ValueError(f"{path.name}: these ids stand twice: {', '.join(twice)}")
    if idle := [fault.id for fault in faults if fault.old == fault.new]:
        raise ValueError(f"{path.name}: old and new are the same: {', '.join(idle)}")
    return faults
