"""The cache of prepared data: the next start with the same files and settings reads it at once.

An entry is named by a hash of everything that shapes it: the bytes of the sources, the `data` settings, the seed, the
tokenizer and its template, the code of this package that prepares rows, and the versions of the libraries it asks.
Times and file names alone decide nothing: a file touched or copied elsewhere is the same data, one changed letter is
other data. (Paths are part of the name as well, because rows say where they come from.)

An entry appears complete or not at all. The ten used last remain.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qdora_fast.config import DataSettings
from qdora_fast.config.code import with_code, without_folder
from qdora_fast.data.read.sources import fingerprint
from qdora_fast.data.store import OTHER_CACHE
from qdora_fast.data.tokenize.render import Rendering
from qdora_fast.system.disk import disk_errors
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.hardware import cache_folder
from qdora_fast.system.manifest import value_hash

ENTRIES = 10
LIBRARIES = ("regex", "datasketch", "ftfy", "xxhash", "numpy", "tokenizers", "transformers", "jinja2", "datasets")
NOT_SHAPING = {"workers", "cache", "quality"}
"""Settings that change nothing about what is cached."""
ADDED_LATER = {"context"}
"""Settings that the first versions of data did not have."""


def entry(settings: DataSettings, *, seed: int, rendering: Rendering | None) -> Path:
    """The folder in which the prepared data is, or would be.

    Raises:
        DataError: a source cannot be read.
    """
    own = settings.own_held_out
    shaped_by = {
        "settings": _code_by_name(settings.model_dump(mode="json", exclude=NOT_SHAPING)),
        "sources": [*map(fingerprint, settings.mixture), *([fingerprint(own, held_out=True)] if own else [])],
        "seed": seed,
        "rendering": rendering.identity() if rendering else None,
        "code": _code(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "unicode": unicodedata.unidata_version,
    }
    return cache_folder() / "data" / value_hash(shaped_by)[:32]


@contextmanager
def new_entry(finished: Path) -> Iterator[Path]:
    """A folder to build an entry in; it takes its place when the block ends without an exception.

    Raises:
        ConfigError: the cache cannot be written to.
        DiskSpaceError: the disk is full.
    """
    try:
        finished.parent.mkdir(0o700, parents=True, exist_ok=True)  # rows lie in it
        building = Path(tempfile.mkdtemp(prefix=f".{finished.name}-", dir=finished.parent))
    except OSError as error:
        raise ConfigError(
            f"cannot cache prepared data in {finished.parent}: {error.strerror}; set QDORA_FAST_CACHE to a folder you "
            "can write to, or data.cache: false"
        ) from error
    try:
        with disk_errors(finished.parent, elsewhere=OTHER_CACHE):
            yield building
        if finished.exists():  # another process was faster; both made the same
            return
        building.rename(finished)
    finally:
        shutil.rmtree(building, ignore_errors=True)  # gone already, unless something was raised
    _forget_old(finished.parent)


def used(folder: Path) -> None:
    """Note that an entry was used now."""
    os.utime(folder)


def _forget_old(root: Path) -> None:
    """Remove all but the entries used last. Files that are open stay readable until they are closed."""
    entries = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    for path in sorted(entries, key=lambda path: path.stat().st_mtime, reverse=True)[ENTRIES:]:
        shutil.rmtree(path, ignore_errors=True)


def _code() -> str:
    """SHA-256 of the files that prepare rows."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def settings_hash(settings: DataSettings, *, seed: int, rendering: Rendering | None) -> str:
    """SHA-256 of what was asked for, without paths: part of the version of the data. The date that a template prints is
    left out, so that rows prepared on another day are the same version, for a review and its run. `thinking` is part of
    the rendering, where it has an effect."""
    asked: dict[str, Any] = settings.model_dump(
        mode="json", exclude={"workers", "cache", "date", "thinking", "path", "held_out_path"}
    )
    asked["sources"] = [source.model_dump(mode="json", exclude={"path"}) for source in settings.mixture]
    asked["own_held_out"] = settings.held_out_path is not None
    identity = rendering.identity() if rendering else None
    asked |= {"seed": seed, "rendering": identity and {key: value for key, value in identity.items() if key != "date"}}
    return value_hash(_without_unset(_code_by_name(asked)))


def _without_unset(value: Any) -> Any:
    """Settings without those of ADDED_LATER that are not set, so that data of earlier runs keep their version."""
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if each is not None or key not in ADDED_LATER}
        return {key: _without_unset(each) for key, each in kept.items()}
    return [_without_unset(each) for each in value] if isinstance(value, list) else value


def _code_by_name(settings: dict[str, Any]) -> Any:
    """Settings in which the folder of a formatter's file is left out; what is in the file, the fingerprint knows."""
    return with_code({"data": settings}, lambda _setting, _keys, text: without_folder(text))["data"]
