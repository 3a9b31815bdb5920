"""A model's shards, written several at a time, so that an interruption costs those in hand and no others.

A shard is written as `<name>.part`, flushed, renamed, and then entered with its SHA-256 into a
ledger beside it. Whoever starts the same work in the same folder again takes the shards of the
ledger whose bytes still have that hash, and throws away everything else. "The same work" is a
string of the caller's that must name all that the bytes depend on; a ledger of other work is worth
nothing. Threads are enough for several shards at a time: torch, hashing and the disk all let go of
Python's lock.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from torch import Tensor

from qdora_fast.models.weights import TensorInfo, write_shard
from qdora_fast.system.atomic import MARK, is_ours, mark, require_space
from qdora_fast.system.disk import disk_errors
from qdora_fast.system.errors import ConfigError, IntegrityError
from qdora_fast.system.json_files import read_object
from qdora_fast.system.manifest import sha256_of
from qdora_fast.system.run_folder import EXPORT

LEDGER = "written_shards.json"
"""Earlier versions wrote `finished.json`, the name of a run's end mark; what they left behind is written anew."""


def write_shards(
    folder: Path,
    shards: Mapping[str, Sequence[TensorInfo]],
    blocks: Callable[[TensorInfo], Iterator[Tensor]],
    *,
    work: str,
    workers: int = 1,
    on_bytes: Callable[[int], None] | None = None,
) -> tuple[dict[str, str], list[str]]:
    """Write all shards into `folder`, which is made, or emptied of all but finished shards of the same work.

    Args:
        shards: file name -> tensors in file order.
        blocks: the rows of one tensor; called from several threads when there are several `workers`.
        work: everything the bytes depend on, in one line.
        workers: shards written at a time.
        on_bytes: told the size of every block, and of each finished shard that was there already.

    Returns:
        The sha256 of every shard, and the names of those that were there already.

    Raises:
        ConfigError: something that is not ours lies in the folder.
        DiskSpaceError: not enough room, before or meanwhile; finished shards stay for the next time.
    """
    tell = on_bytes or (lambda count: None)
    digests = finished_shards(folder, work)
    resumed = list(digests)
    left = [name for name in shards if name not in digests]
    require_space(folder, sum(info.nbytes for name in left for info in shards[name]))
    _tidy(folder, resumed)
    _write_ledger(folder, work, digests)
    for name in resumed:
        tell(sum(info.nbytes for info in shards[name]))
    entering = threading.Lock()

    def write(name: str, on_block: Callable[[int], None]) -> None:
        part = folder / f"{name}.part"
        digest = write_shard(part, shards[name], blocks, on_block)
        part.rename(folder / name)
        with entering:
            digests[name] = digest
            _write_ledger(folder, work, digests)

    disk = disk_errors(
        folder,
        saved=lambda: f"{len(digests)} of {len(shards)} shards are finished and stay there",
        again="run the same command again: it resumes from them",
    )
    with disk:
        try:
            _in_threads(left, write, workers, tell)
        except BaseException:
            _give_up(folder)
            raise
    return digests, resumed


def finished_shards(folder: Path, work: str) -> dict[str, str]:
    """Shards of the same work that an interruption left behind complete, with their sha256."""
    ledger = _read_ledger(folder)
    if ledger.get("work") != work:
        return {}
    return {name: digest for name, digest in ledger["finished"].items() if _is_complete(folder / name, digest)}


def close_ledger(folder: Path) -> None:
    """The folder is finished: nothing is to be taken from it any more."""
    (folder / LEDGER).unlink(missing_ok=True)


def _in_threads(
    names: Sequence[str],
    write: Callable[[str, Callable[[int], None]], None],
    workers: int,
    tell: Callable[[int], None],
) -> None:
    """Write some shards at a time; when one fails, the others stop at their next block and its error is raised."""
    failed = threading.Event()

    def on_block(count: int) -> None:
        if failed.is_set():
            raise InterruptedError("another shard failed")
        tell(count)

    with ThreadPoolExecutor(workers, "shard") as pool:
        written = [pool.submit(write, name, on_block) for name in names]
        try:
            for future in as_completed(written):
                future.result()
        except BaseException:
            failed.set()
            pool.shutdown(cancel_futures=True)
            raise


def _give_up(folder: Path) -> None:
    """Leave the finished shards for the next time; where there are none, leave nothing."""
    for part in folder.glob("*.part"):
        part.unlink()
    if not _read_ledger(folder).get("finished"):
        shutil.rmtree(folder, ignore_errors=True)


def _tidy(folder: Path, finished: Collection[str]) -> None:
    """Make the folder, or remove all that an earlier process left in it but finished shards."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if (folder / MARK).is_file() and not is_ours(folder):
        raise ConfigError(
            f"{folder}: another process is writing it; name another output folder (if none is: remove {MARK} in it)"
        )
    known = any(  # export.json: of an export whose proof has failed
        (folder / name).is_file() for name in (MARK, LEDGER, EXPORT)
    )
    if folder.is_symlink() or (folder.exists() and not (known or not any(folder.iterdir()))):
        raise ConfigError(f"{folder}: is in the way, and was not made here; move it, or name another output folder")
    folder.mkdir(exist_ok=True)
    mark(folder)
    for path in folder.iterdir():
        if path.name not in (*finished, LEDGER, MARK):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _read_ledger(folder: Path) -> dict[str, Any]:
    try:
        return read_object(folder / LEDGER, {"work?": str, "finished?": dict})
    except IntegrityError:
        return {}


def _write_ledger(folder: Path, work: str, digests: Mapping[str, str]) -> None:
    """Replace the ledger at once, on the disk before anything else happens."""
    new = folder / f"{LEDGER}.new"
    with new.open("w", encoding="utf-8") as ledger:
        json.dump({"work": work, "finished": dict(digests)}, ledger)
        ledger.flush()
        os.fsync(ledger.fileno())
    new.replace(folder / LEDGER)


def _is_complete(file: Path, digest: str) -> bool:
    return file.is_file() and sha256_of(file) == digest
