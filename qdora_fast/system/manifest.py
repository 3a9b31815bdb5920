"""What a folder should hold, to the bit: MANIFEST.json with the SHA-256 and size of each of its files.

A flipped bit in an adapter loads without a word and trains on; a file that a crash left out is
filled with fresh values. So a checkpoint, an adapter and an export each carry a list of what was
written, and nothing is read back before it has been compared. The manifest covers itself: its text
must be exactly the one that its content gives, and its last entry is the hash of the others.

What this does not do: protect against somebody who wants to cheat, for they can write a new
manifest. Files that came later (a model card) are not looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from qdora_fast.system.atomic import MARK
from qdora_fast.system.errors import IntegrityError
from qdora_fast.system.json_files import parse_json, read_limited
from qdora_fast.system.paths import open_regular

NAME = "MANIFEST.json"


def write_manifest(
    folder: Path, about: Mapping[str, Any], *, leave_out: Collection[str] = (), known: Mapping[str, str] | None = None
) -> None:
    """Hash every file below `folder` and write the manifest beside them.

    Args:
        about: what the folder is (kind, step, ...), any JSON.
        leave_out: names of files that may change later, such as a model card.
        known: SHA-256 of files that were hashed while they were written, by name.
    """
    names, known = {MARK, *leave_out}, known or {}
    own = folder / NAME  # those of folders below are files like others
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in names and path != own)
    entries = {
        name: {"bytes": path.stat().st_size, "sha256": known.get(name) or sha256_of(path)}
        for path in files
        for name in [path.relative_to(folder).as_posix()]
    }
    (folder / NAME).write_text(_text({"about": dict(about), "files": entries}), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest's content, itself checked: `about`, and `files` by relative name.

    Raises:
        IntegrityError: not there, or not as it was written.
    """
    path = folder / NAME
    try:
        raw = read_limited(path)
        written = parse_json(raw)
        content = {"about": written["about"], "files": written["files"]}
        unchanged = all(isinstance(part, dict) for part in content.values()) and raw == _text(content).encode()
    except OSError as error:
        raise IntegrityError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        unchanged = False
    if not unchanged:
        raise IntegrityError(f"{path}: damaged; it is not what was written")
    return content


def problems(folder: Path) -> list[str]:
    """What is wrong with the files of a folder, a sentence each; [] where all is as it was written."""
    try:
        files = read_manifest(folder)["files"]
    except IntegrityError as error:
        return [str(error)]
    return [f"{folder / name}: {wrong}" for name, entry in files.items() if (wrong := _wrong(folder, name, entry))]


def require_unchanged(folder: Path) -> None:
    """Raise IntegrityError when a folder has a manifest and is not as it says."""
    wrong = problems(folder) if (folder / NAME).is_file() else []
    if wrong:
        raise IntegrityError(f"{wrong[0]}{f' (and {len(wrong) - 1} more)' if len(wrong) > 1 else ''}")


def sha256_of(file: Path) -> str:
    """The sha256 of a file's bytes, in hex.

    Raises:
        OSError: it cannot be read, or is a pipe or a device.
    """
    with open_regular(file) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def value_hash(value: Any) -> str:
    """The sha256 of a JSON value, keys sorted, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _wrong(folder: Path, name: str, entry: Mapping[str, Any]) -> str | None:
    """Why one file is not as the manifest says; None: it is."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        return "lies outside the folder"
    path = folder / relative
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"{size:,} bytes, but {entry['bytes']:,} were written"
        return None if sha256_of(path) == entry["sha256"] else "its content has changed since it was written"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _text(content: dict[str, Any]) -> str:
    """The one way to write a manifest."""
    plain = json.dumps(content, sort_keys=True, ensure_ascii=False)
    seal = hashlib.sha256(plain.encode()).hexdigest()
    return json.dumps({**content, "manifest_sha256": seal}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
