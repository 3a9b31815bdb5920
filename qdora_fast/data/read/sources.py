"""Where rows come from: a file, a folder of files, a saved dataset, the hub, or the embedded demo.

`path` is one string; this file decides what it means, in this order: the word `demo`, something that exists on disk, a
URL (fetched by `remote.py`, then read as a file here), a hub dataset id. A path that looks like a file but is not there
is never sent to the hub, since "not found on the hub" would hide a typing error.

Rows are read once, as they are asked for. Only the first hundred or so are kept for a moment, to recognise the format.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from qdora_fast.config.code import without_folder
from qdora_fast.config.data import SourceSettings
from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.read import custom, in_memory, remote
from qdora_fast.data.read.detection import ROWS_LOOKED_AT, Detection, choose_format
from qdora_fast.data.read.folders import FolderFiles, check_split_of_file, folder_files
from qdora_fast.data.read.ids import IdCheck as IdCheck  # seen with the rows of a source, so importable from here
from qdora_fast.data.read.readers import (
    RUNS_CODE,
    BadRow,
    RawRow,
    bad_rows_error,
    characters_in,
    file_kind,
    is_supported,
    numbered,
    read_file,
)
from qdora_fast.data.read.tables import WRONG_FEATURES, dataset_rows
from qdora_fast.system.errors import DataError, first_line
from qdora_fast.system.limits import BATCH_BYTES
from qdora_fast.system.manifest import sha256_of, value_hash
from qdora_fast.system.paths import SPECIAL, local_path, refuse_links_out

OTHER_FILE_ENDINGS = (".txt", ".xlsx", ".xls", ".gz", ".zip", ".zst", ".yaml", ".db", *RUNS_CODE)
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
MOST_AHEAD = 10_000
"""Rows read in search of the first hundred good ones, before giving up."""


@dataclass(frozen=True)
class ReadReport:
    """What was read: `files` are (name, rows) pairs in reading order, good and bad rows together."""

    path: str
    files: tuple[tuple[str, int], ...]
    skipped: tuple[str, ...] = ()
    """Files of a folder whose ending we do not read."""
    other_splits: tuple[tuple[str, str], ...] = ()
    """(name, split) of files of a folder that are of another split than `data.split`."""


class Source:
    """An opened source. `detection` is decided; `rows` are read as they are asked for."""

    def __init__(self, settings: SourceSettings, *, held_out: bool = False) -> None:
        self.settings = settings
        self.path = in_memory.shown(settings.path)
        self._parts, self._folder = _parts(settings, held_out)
        self._counts = {part.name: 0 for part in self._parts}
        rest = self._read()
        ahead, good = _look_ahead(rest, settings)
        self.detection: Detection = choose_format(good, settings)
        self._rows: Iterator[RawRow | BadRow] | None = chain(ahead, rest)

    def rows(self) -> Iterator[RawRow | BadRow]:
        """The rows as they lie in the files, at most `max_rows` of them, good and bad. Once only.

        Raises:
            DataError: while reading, see `readers.read_file`.
        """
        assert self._rows is not None, "a source is read once"
        rows, self._rows = self._rows, None
        return rows

    def report(self) -> ReadReport:
        """What has been read; complete after the last of the rows."""
        return ReadReport(self.path, tuple(self._counts.items()), self._folder.skipped, self._folder.other_splits)

    def _read(self) -> Iterator[RawRow | BadRow]:
        left = self.settings.max_rows
        for part in self._parts:
            for row in islice(part.rows(), left):
                self._counts[part.name] += 1
                yield row
            left = None if left is None else left - self._counts[part.name]


def open_source(source: SourceSettings, *, held_out: bool = False) -> Source:
    """Find the rows that `source` describes and recognise their format on the first 100 good ones.

    With `source.formatter` the format is that of what the formatter returns; `rows` stay as they lie in the files.

    Args:
        held_out: they are to be held out, see `folders.folder_files`.

    Raises:
        DataError: nothing there, nothing in it, no good row in it, or of unknown format.
        ConfigError: a formatter that may not or cannot be run.
    """
    return Source(source, held_out=held_out)


def raw_rows(source: SourceSettings) -> Iterator[RawRow | BadRow]:
    """All rows of a source as they lie in its files, good and bad, of whatever shape. Of a folder that names splits,
    those that are not trained on.

    Raises:
        DataError: nothing there, or a file that cannot be read any further.
    """
    parts, _ = _parts(source, held_out=True)
    return islice(chain.from_iterable(part.rows() for part in parts), source.max_rows)


def is_local(path: str) -> bool:
    """Whether a source's path means something on this machine, if not there then by its form, and no hub dataset."""
    return path == "demo" or local_path(path).exists() or _looks_local(path)


def fingerprint(source: SourceSettings, *, held_out: bool = False) -> str:
    """SHA-256 of what the source would give: of the bytes of its files and of its formatter's file.

    It is the same wherever the files lie, whenever they were written, and on every machine; the settings (format,
    split, ...) are not in it.

    Raises:
        DataError: nothing there.
        ConfigError: no such file of a formatter.
    """
    digest = hashlib.sha256()
    for part in _parts(source, held_out)[0]:
        digest.update(f"{part.label}\0{part.digest()}\n".encode())
    if source.formatter:
        digest.update(b"formatter\0" + hashlib.sha256(custom.formatter_source(source.formatter)).digest())
    return digest.hexdigest()


class _Part(NamedTuple):
    """A piece of a source that is read in one go: its name, what it is called in a fingerprint, rows, SHA-256."""

    name: str
    label: str
    rows: Callable[[], Iterator[RawRow | BadRow]]
    digest: Callable[[], str]


def _parts(source: SourceSettings, held_out: bool) -> tuple[list[_Part], FolderFiles]:
    """The pieces in reading order, and what is left out of a folder."""
    path, local = source.path, local_path(source.path)
    alone = FolderFiles(())
    if path == "demo":
        return [
            _Part("demo", "demo", lambda: numbered(((row, frozenset()) for row in _demo_rows()), "demo"), _demo_digest)
        ], alone
    if local.is_file():
        if not held_out:
            check_split_of_file(local, source.split)
        return [_memory_part(local) if in_memory.name_of(local) else _file_part(local, file_kind(local))], alone
    if _is_saved_dataset(local):
        return [_dataset_part(str(local), lambda: _saved(local, source.split))], alone
    if local.is_dir():
        folder = folder_files(local, source.split, held_out=held_out)
        return [_file_part(file, str(file.relative_to(local))) for file in folder.files], folder
    if local.exists():
        raise DataError(f"{local}: {SPECIAL}, which is not read; write the rows to a file first and name that")
    if remote.is_remote(path):
        return _remote_parts(source, held_out)
    if _looks_local(path):
        raise DataError(_missing_file(local))
    if not HUB_ID.fullmatch(path):
        raise DataError(f"{path!r} is neither a file or folder here nor a hub dataset id such as org/name")
    return [_dataset_part(path, lambda: _hub(path, source.split, source.config))], alone


def _remote_parts(source: SourceSettings, held_out: bool) -> tuple[list[_Part], FolderFiles]:
    """The pieces of the copy that was fetched, called by their URLs."""
    copy = remote.fetch(source.path)
    parts, folder = _parts(source.model_copy(update={"path": str(copy.path)}), held_out)
    return [_called(part, copy.name_of(part.name)) for part in parts], replace(
        folder, skipped=(*folder.skipped, *copy.skipped)
    )


def _called(part: _Part, name: str) -> _Part:
    """A piece and its rows under another name."""

    def rows() -> Iterator[RawRow | BadRow]:
        return (row._replace(source=row.source.replace(part.name, name, 1)) for row in part.rows())

    return part._replace(name=name, rows=rows)


def _file_part(path: Path, label: str) -> _Part:
    return _Part(str(path), label, lambda: read_file(path), lambda: _file_digest(path))


def _memory_part(path: Path) -> _Part:
    """Rows that were given in Python; a row has a number, no line."""
    name = in_memory.shown(str(path))

    def rows() -> Iterator[RawRow | BadRow]:
        for row in read_file(path):
            yield row._replace(source=f"{name} row {row.source.rpartition(':')[2]}")

    return _Part(name, "memory", rows, lambda: _file_digest(path))


def _dataset_part(name: str, load: Callable[[], Any]) -> _Part:
    def rows() -> Iterator[RawRow | BadRow]:
        dataset = load()
        named = f"{name} ({dataset.split})" if dataset.split else name
        return numbered(dataset_rows(dataset, named), named)

    return _Part(name, "dataset", rows, lambda: _dataset_digest(load()))


def _look_ahead(
    rest: Iterator[RawRow | BadRow], settings: SourceSettings
) -> tuple[list[RawRow | BadRow], list[RawRow]]:
    """Rows read ahead of their time, and the good ones among them as the format's converter will see them."""
    formatter = custom.load_formatter(settings.formatter) if settings.formatter else None
    ahead: list[RawRow | BadRow] = []
    good: list[RawRow] = []
    bad: list[BadRow] = []
    characters = 0
    for row in islice(rest, MOST_AHEAD):
        ahead.append(row)
        characters += 0 if isinstance(row, BadRow) else characters_in(row.row)
        if isinstance(row, BadRow):
            bad.append(row)
        elif formatter is None:
            good.append(row)
        else:
            try:
                good.append(RawRow(custom.apply(formatter, row.row), row.source))
            except RejectedRow as rejected:
                bad.append(BadRow(rejected.reason, rejected.detail, row.source))
        if len(good) == ROWS_LOOKED_AT or (good and characters > BATCH_BYTES):
            break
    if not ahead:
        raise DataError(f"{in_memory.shown(settings.path)}: no rows in it; expected at least one example")
    if not good:
        failed = [row for row in bad if row.reason != "left_out"]
        if not failed:
            name = without_folder(settings.formatter or "")
            raise DataError(f"{in_memory.shown(settings.path)}: {name} returned None for each of {len(ahead)} rows")
        raise bad_rows_error(failed, len(failed))
    return ahead, good


def _file_digest(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _dataset_digest(dataset: Any) -> str:
    """By the Arrow files that hold it; by its rows if it is held in memory."""
    digest = hashlib.sha256()
    for file in dataset.cache_files:
        digest.update(_file_digest(Path(file["filename"])).encode())
    if not dataset.cache_files:
        for row in dataset:
            digest.update(repr(row).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def _demo_rows() -> Iterator[dict[str, Any]]:
    from qdora_fast.data.demo.world import rows

    yield from rows()


def _demo_digest() -> str:
    return value_hash(list(_demo_rows()))


def _is_saved_dataset(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _saved(folder: Path, split: str) -> Any:
    from datasets import Dataset, load_from_disk

    refuse_links_out(folder)
    try:
        saved = load_from_disk(str(folder))
    except (OSError, *WRONG_FEATURES) as error:
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"{folder}: not a folder that save_to_disk has written ({problem}); is it complete?") from error
    if isinstance(saved, Dataset):
        return saved
    if split not in saved:
        raise DataError(f"{folder}: no split {split!r}; set data.split to one of: {', '.join(map(str, saved))}")
    return saved[split]


def _hub(path: str, split: str, config: str | None) -> Any:
    """A dataset of the hub. `datasets` runs no code that lies beside it, and is not asked to."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return load_dataset(path, config, split=split)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{path!r} is no file or folder here, and loading it from the hub failed: {first_line(error)}. "
            f"Check the name, data.split ({split!r}) and the network, or download it and give the file's path."
        ) from error


def _looks_local(path: str) -> bool:
    if path.startswith((".", "/", "~")) or "\\" in path or path.count("/") > 1:
        return True
    return is_supported(Path(path)) or path.lower().endswith(OTHER_FILE_ENDINGS)


def _missing_file(path: Path) -> str:
    folder = path.parent
    if name := in_memory.name_of(path):
        return f"{name}: no longer in the cache ({path}); give them once more in Python, as data={{'rows': ...}}"
    if not folder.is_dir():
        return f"{path}: no such file; the folder {folder} does not exist either (paths start at {Path.cwd()})"
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() or is_supported(entry))
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5) or names[:3]
    there = f"; did you mean {' or '.join(near)}?" if near else "; there is no data file in that folder"
    return f"{path}: no such file or folder{there}"
