"""The record: one JSON line an export, appended as it ends, by which an interrupted harness goes on."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Line = Mapping[str, Any]


def read(file: Path) -> list[dict[str, Any]]:
    """All complete lines; of one export that stands there twice, the last."""
    if not file.is_file():
        return []
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1] if line]
    return list({line["key"]: line for line in lines}.values())


def append(file: Path, line: Line) -> None:
    """Add one line; several processes may."""
    with file.open("a", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        handle.write(json.dumps(dict(line), ensure_ascii=False) + "\n")
