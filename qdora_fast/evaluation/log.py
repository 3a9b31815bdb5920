"""The evaluation log of a run: what was found about its data and its model, and by whom; one JSON object a line.

The file is only ever appended to, and each line is on the disk before the call returns, so that an entry once made
stays. Entries say their `kind`; the first kind is `data_review`, a person's marks on a sample of the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qdora_fast.system.errors import IntegrityError
from qdora_fast.system.json_files import append_line, mismatch, read_lines
from qdora_fast.system.redact import redacted

LOG = Path("evaluation") / "log.jsonl"
FIX = "copy the log again, or remove that line if its entry may be lost"


def append(folder: Path, kind: str, content: Mapping[str, Any]) -> Path:
    """Add an entry to the log below `folder`; returns the log's path."""
    path = folder / LOG
    append_line(path, {"kind": kind, "at": datetime.now(UTC).isoformat(timespec="seconds"), **redacted(content)})
    return path


def entries(folder: Path, kind: str | None = None, shape: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The entries of a log, oldest first; of one kind or of all. [] where there is no log.

    Args:
        shape: the keys that entries of this kind must have, see `json_files.Shape`.

    Raises:
        IntegrityError: a line is damaged.
    """
    path = folder / LOG
    every = read_lines(path, {"kind": str, "at": str}, fix=FIX) if path.exists() else []
    chosen = [entry for entry in every if kind in (None, entry["kind"])]
    for entry in chosen:
        if wrong := mismatch(entry, shape or {}):
            raise IntegrityError(f"{path}: the entry of {entry['at']}: {wrong}; {FIX}")
    return chosen
