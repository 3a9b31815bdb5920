"""One process in a run's folder at a time.

Two processes that write checkpoints into one folder take turns at destroying each other's. The
lock is the operating system's (through filelock), so it ends with the process that holds it,
however that ends: there are no stale locks to clean up. A note beside it says who holds it, for
the message. Where a file system has no locks, filelock makes do with a file. What this does not do:
protect a folder on a network file system that keeps each machine's locks to itself.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from qdora_fast.system.errors import IntegrityError, RunLocked
from qdora_fast.system.json_files import read_object

LOCK, HOLDER = ".lock", ".lock.json"


PATIENCE = 0.5
"""Seconds to wait for a lock: somebody who only asks whether there is one holds it for an instant."""


@contextmanager
def locked(folder: Path, *, instead: str = "or start another run (`--set run.name=...`)") -> Iterator[None]:
    """Hold a run's folder.

    Args:
        instead: what else the user can do, as the end of the message.

    Raises:
        RunLocked: another process does; says which, on which machine and since when.
    """
    lock = FileLock(str(folder / LOCK), timeout=PATIENCE)
    try:
        lock.acquire()
    except Timeout:
        raise RunLocked(f"{folder} is in use by {_holder(folder)}; wait until it is done, {instead}") from None
    try:
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        (folder / HOLDER).write_text(json.dumps(note) + "\n", encoding="utf-8")
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def in_use(folder: Path) -> bool:
    """Whether another process holds the folder now."""
    lock = FileLock(str(folder / LOCK), timeout=0)
    try:
        with lock:
            return False
    except Timeout:
        return True


def is_held(folder: Path) -> bool:
    """Whether a process, this one included, holds the folder; for somebody who asks again and again. Without the
    holder's note the lock is not touched."""
    return (folder / HOLDER).is_file() and in_use(folder)


def _holder(folder: Path) -> str:
    try:
        note = read_object(folder / HOLDER, {"pid": int, "host": str, "since": str})
    except IntegrityError:
        return "another process"
    return f"process {note['pid']} on {note['host']} (since {note['since']})"
