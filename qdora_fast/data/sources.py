"""Where rows come from: a file, a folder of files, a saved dataset, the hub, or the embedded demo.

`data.path` is one string; this file decides what it means, in this order: the word `demo`, something
that exists on disk, a hub dataset id. A path that looks like a file but is not there is never sent
to the hub, since "not found on the hub" would hide a typing error.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

from qdora_fast.data.readers import RawRow, is_supported, read_file, supported_endings
from qdora_fast.errors import DataError

OTHER_FILE_ENDINGS = (".txt", ".xlsx", ".xls", ".gz", ".zip", ".zst", ".pkl", ".yaml", ".db")
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class ReadReport:
    """What was opened: `files` are (name, rows) pairs in reading order."""

    path: str
    files: tuple[tuple[str, int], ...]
    skipped: tuple[str, ...] = ()
    """Files of a folder whose ending we do not read."""


def read_rows(
    path: str, *, split: str = "train", config: str | None = None, max_rows: int | None = None
) -> tuple[list[RawRow], ReadReport]:
    """Read raw rows from wherever `path` points.

    Args:
        path: file, folder, hub dataset id, or `demo`.
        split: split of a hub dataset or of a folder made by `DatasetDict.save_to_disk`.
        config: configuration of a hub dataset that has several.
        max_rows: stop after so many rows; None reads all.

    Raises:
        DataError: nothing there, nothing in it, or it cannot be parsed.
    """
    local = Path(path).expanduser()
    skipped: tuple[str, ...] = ()
    if path == "demo":
        parts = [("demo", _demo_rows())]
    elif local.is_file():
        parts = [(str(local), read_file(local))]
    elif _is_saved_dataset(local):
        parts = [(str(local), _saved_rows(local, split))]
    elif local.is_dir():
        files, skipped = _folder_files(local)
        parts = [(str(file), read_file(file)) for file in files]
    elif _looks_local(path):
        raise DataError(_missing_file(local))
    else:
        parts = [(path, _hub_rows(path, split, config))]

    rows: list[RawRow] = []
    counts: list[tuple[str, int]] = []
    for name, part in parts:
        before = len(rows)
        rows.extend(islice(part, None if max_rows is None else max_rows - before))
        counts.append((name, len(rows) - before))
    if not rows:
        raise DataError(f"{path}: no rows in it; expected at least one example")
    return rows, ReadReport(path, tuple(counts), skipped)


def _demo_rows() -> Iterator[RawRow]:
    from qdora_fast.demo.world import rows

    return _numbered(rows(), "demo")


def _folder_files(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    files = sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    chosen = [file for file in files if is_supported(file)]
    if not chosen:
        inside = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise DataError(f"{folder}: no data file in this folder (it holds {inside}); supported: {supported_endings()}")
    return chosen, tuple(file.name for file in files if file not in chosen)


def _is_saved_dataset(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _saved_rows(folder: Path, split: str) -> Iterator[RawRow]:
    from datasets import Dataset, load_from_disk

    saved = load_from_disk(str(folder))
    if isinstance(saved, Dataset):
        return _numbered(saved, str(folder))
    if split not in saved:
        raise DataError(f"{folder}: no split {split!r}; set data.split to one of: {', '.join(map(str, saved))}")
    return _numbered(saved[split], f"{folder} ({split})")


def _hub_rows(path: str, split: str, config: str | None) -> Iterator[RawRow]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    if not HUB_ID.fullmatch(path):
        raise DataError(f"{path!r} is neither a file or folder here nor a hub dataset id such as org/name")
    try:
        dataset = load_dataset(path, config, split=split)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{path!r} is no file or folder here, and loading it from the hub failed: {_first_line(error)}. "
            f"Check the name, data.split ({split!r}) and the network, or download it and give the file's path."
        ) from error
    return _numbered(dataset, f"{path} ({split})")


def _numbered(rows: Iterable[Any], name: str) -> Iterator[RawRow]:
    for number, row in enumerate(rows, 1):
        yield RawRow(cast(dict[str, Any], row), f"{name} row {number}")


def _looks_local(path: str) -> bool:
    if path.startswith((".", "/", "~")) or "\\" in path or path.count("/") > 1:
        return True
    return is_supported(Path(path)) or path.lower().endswith(OTHER_FILE_ENDINGS)


def _missing_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"{path}: no such file; the folder {folder} does not exist either (paths start at {Path.cwd()})"
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() or is_supported(entry))
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5) or names[:3]
    there = f"; did you mean {' or '.join(near)}?" if near else "; there is no data file in that folder"
    return f"{path}: no such file or folder{there}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
