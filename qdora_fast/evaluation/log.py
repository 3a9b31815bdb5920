"""The evaluation log of a run: what was found about its data and its model, and by whom; one JSON object a line.

The file is only ever appended to, and each line is on the disk before the call returns, so that an entry once made
stays. Entries say their `kind`; the first kind is `data_review`, a person's marks on a sample of the rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qdora_fast.system.redact import redacted

LOG = Path("evaluation") / "log.jsonl"


def append(folder: Path, kind: str, content: Mapping[str, Any]) -> Path:
    """Add an entry to the log below `folder`; returns the log's path."""
    path = folder / LOG
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = {"kind": kind, "at": datetime.now(UTC).isoformat(timespec="seconds"), **redacted(content)}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return path


def entries(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The entries of a log, oldest first; of one kind or of all. [] where there is no log."""
    path = folder / LOG
    if not path.is_file():
        return []
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [entry for entry in found if kind in (None, entry["kind"])]
