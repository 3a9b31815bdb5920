"""The user's list of code that may run: SHA-256 and setting of each file that was once allowed.

It lies in the user's configuration folder and never in a run, so that nothing that somebody sends can bring a
permission along (as Jupyter keeps its signatures, and direnv its allowed files). An entry holds for these very bytes in
this very setting; path and date are for people who read the list. Removing an entry, or the file, takes permissions
back. Only the user may write to it: a list that others can change is refused.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from qdora_fast.system.errors import ConfigError
from qdora_fast.system.json_files import parse_json, read_limited

NAME = "allowed_code.json"


@dataclass(frozen=True)
class Entry:
    """One permission."""

    sha256: str
    setting: str
    path: str
    date: str = ""


def list_file() -> Path:
    """Where the list is: below XDG_CONFIG_HOME, or ~/.config."""
    named = os.environ.get("XDG_CONFIG_HOME", "")
    root = Path(named) if Path(named).is_absolute() else Path.home() / ".config"
    return root / "qdora_fast" / NAME


def entries() -> list[Entry]:
    """What was allowed so far, oldest first.

    Raises:
        ConfigError: others can write to the list, or it is damaged.
    """
    path = list_file()
    try:
        _require_private(path)
        raw = read_limited(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{path}: the list of allowed code cannot be read: {error.strerror}") from None
    try:
        return [Entry(**{key: str(value) for key, value in each.items()}) for each in parse_json(raw)["allowed"]]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ConfigError(
            f"{path}: the list of allowed code is damaged; remove it, and you will be asked for each file again"
        ) from None


def add(new: Sequence[Entry]) -> None:
    """Put entries into the list, today's date with each. Two processes that add at once lose nothing.

    Raises:
        ConfigError: the list cannot be written.
    """
    path = list_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.parent.chmod(0o700)
        with FileLock(str(path.with_suffix(".lock")), mode=0o600):
            before = entries()
            known = {(each.sha256, each.setting) for each in before}
            today = time.strftime("%Y-%m-%d")
            added = [Entry(each.sha256, each.setting, each.path, today) for each in new]
            _replace(path, [*before, *(each for each in added if (each.sha256, each.setting) not in known)])
    except OSError as error:
        raise ConfigError(
            f"{path}: the list of allowed code cannot be written: {error.strerror or error}; name another folder by "
            "XDG_CONFIG_HOME"
        ) from None


def _replace(path: Path, allowed: Sequence[Entry]) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    content: dict[str, Any] = {"allowed": [asdict(each) for each in allowed]}
    try:
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _require_private(path: Path) -> None:
    """Raise ConfigError when somebody else can have written the list."""
    for place in (path, path.parent):
        known = place.stat()
        if known.st_uid not in (os.getuid(), 0) or known.st_mode & 0o022:
            raise ConfigError(
                f"{place}: others than you can write here, and the list of allowed code is believed; look at it, then "
                f"chmod go-w {place} (or remove it)"
            )
