"""Folders, and files, that appear complete or not at all.

A crash, a full disk or Ctrl-C in the middle of a save must never leave something that looks like
a model and is half of one. So a folder is built under `<name>.incomplete`, flushed to the disk,
and renamed when it is finished. Until then a mark lies in it with the id of the process: what a
crash left is removed by its mark, never by its name alone, and never while its process lives.
Free space is asked for first; what a disk refuses meanwhile is `disk.py`'s business. What this does
not do: lock the folder against a second process.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qdora_fast.system.errors import ConfigError, DiskSpaceError
from qdora_fast.system.hardware import nearest_folder

MARK = ".qdora_fast-unfinished"
"""The file that says whose a folder under a passing name is: it holds the id of the process that builds it."""
SPARE_BYTES = 256 * 2**20
"""Space left free beyond what is written, so that logs and metrics can still be."""


@contextmanager
def staged_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Build `out` in the yielded folder; it gets its name when the block ends without an exception.

    Raises:
        ConfigError: `out` exists and `overwrite` is false (nothing has been written then).
    """
    refuse_existing(out, overwrite=overwrite)
    staging = _free_name(out, "incomplete")
    staging.mkdir(parents=True)
    mark(staging)
    try:
        yield staging
        publish(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # gone already, unless something was raised


@contextmanager
def staged_file(out: Path) -> Iterator[Path]:
    """Write `out` under the yielded name; it gets its own, in place of an older one, when the block ends without an
    exception."""
    staging = out.with_name(f"{out.name}.{os.getpid()}.incomplete")
    try:
        yield staging
        staging.replace(out)
    finally:
        staging.unlink(missing_ok=True)  # gone already, unless something was raised


def refuse_existing(out: Path, *, overwrite: bool) -> None:
    """Raise ConfigError when `out` is already there and may not be replaced."""
    if out.exists() and not overwrite:
        raise ConfigError(f"{out}: already exists; name another folder, remove it, or ask to overwrite it")


def require_space(folder: Path, needed: int) -> None:
    """Raise DiskSpaceError unless `needed` bytes and `SPARE_BYTES` are free where `folder` will be."""
    free = shutil.disk_usage(nearest_folder(folder)).free
    if free < needed + SPARE_BYTES:
        raise DiskSpaceError(
            f"{folder}: {(needed + SPARE_BYTES) / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free on that disk; "
            "free some space there or name a folder on another disk"
        )


def mark(folder: Path) -> None:
    """Say that a folder is unfinished and this process'."""
    (folder / MARK).write_text(_identity(os.getpid()), encoding="utf-8")


def is_ours(folder: Path) -> bool:
    """Whether a folder under a passing name may be emptied: marked, and by no other process that still lives."""
    try:
        owner = (folder / MARK).read_text(encoding="utf-8")
        process = int(owner.partition(" ")[0])
    except (OSError, ValueError):
        return False
    return not folder.is_symlink() and (process == os.getpid() or owner != _identity(process))


def publish(staging: Path, out: Path) -> None:
    """Flush a finished folder to the disk and rename it to `out`."""
    (staging / MARK).unlink(missing_ok=True)
    for path in [*staging.rglob("*"), staging]:
        if path.is_file():
            let_read(path)
        _flush(path)
    _replace_folder(staging, out)


def let_read(file: Path) -> None:
    """Let everybody read a file who may list its folder; safetensors lets the owner alone.

    Where a file system has no such rights, nothing changes.
    """
    mode, wanted = file.stat().st_mode, file.parent.stat().st_mode & 0o444
    if wanted & ~mode:
        with suppress(OSError):
            file.chmod(mode | wanted)


def _replace_folder(staging: Path, out: Path) -> None:
    """Rename `staging` to `out`; a folder already there is removed only after the new one stands."""
    replaced = _free_name(out, "replaced")
    if out.exists():
        out.rename(replaced)
    staging.rename(out)
    _flush(out.parent)
    _remove(replaced)


def discard(folder: Path) -> None:
    """Remove a folder that looks complete: it is renamed first, so that no half of it keeps its name."""
    removed = _free_name(folder, "removed")
    folder.rename(removed)
    _flush(folder.parent)  # else a power cut could keep the name and not the files
    _remove(removed)


def _free_name(out: Path, ending: str) -> Path:
    """A passing name beside `out`; what an earlier process of ours left under the usual one is removed."""
    usual = out.with_name(f"{out.name}.{ending}")
    if is_ours(usual):
        shutil.rmtree(usual, ignore_errors=True)
    if not (usual.exists() or usual.is_symlink()):
        return usual
    return out.with_name(f"{out.name}.{os.getpid()}.{ending}")


def _remove(folder: Path) -> None:
    """Remove a folder of ours, so that a crash on the way leaves it marked."""
    if folder.is_dir():
        with suppress(OSError):
            mark(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _identity(process: int) -> str:
    """A process' id and when it started, since ids are used again; the id alone where it has ended."""
    import psutil

    try:
        found = psutil.Process(process)
        ended = found.status() == psutil.STATUS_ZOMBIE
        return str(process) if ended else f"{process} {found.create_time():.2f}"
    except psutil.Error:
        return str(process)


def _flush(path: Path) -> None:
    """Force a file, or a folder's list of names, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
