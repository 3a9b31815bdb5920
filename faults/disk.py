"""Disks that are full, broken or read-only: at each call of a save, at a size, and a real small disk that fills up.

Either the run does not mind, or it ends with the exit code for it and words (no traceback), with the
checkpoint before still whole; once the disk is well again it goes on to the same adapter.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.kills import go_on
from faults.strike import SAVES, fail, places
from faults.trial import Group, Trial
from faults.victim import put, require

_FULL = (errno.ENOSPC, errno.EDQUOT)
_ERRORS = (*_FULL, errno.EIO, errno.EROFS, errno.EACCES)
_CAN_FAIL = ("open", "serialize_file", "mkdir", "fsync", "rename")
"""Removing an old checkpoint can fail, too, but nobody minds."""


def at_a_call(trial: Trial) -> None:
    """One call of the file system in one save fails."""
    error = _ERRORS[trial.number % len(_ERRORS)]
    chosen = [place for place in places(trial.lab) if place.call in _CAN_FAIL]
    place = chosen[trial.number * 5 % len(chosen)]
    step = trial.random.choice(SAVES)
    trial.note = f"{errno.errorcode[error]} at {place.label}, step {step}"
    job = trial.lab.job(trial.folder)
    ended = job.run(fault=fail(step, place, error)).require(0, 11 if error in _FULL else 1)
    if ended.code:
        require(
            "could not be written" in ended.said and "--auto-resume" in ended.said, f"says only: {ended.said[-300:]}"
        )
        require(job.steps()[-1] in (step - 1, step), f"at step {step}: checkpoints at {job.steps()}")
    require(not list(job.last().path.glob("checkpoints/*.incomplete")), "an unfinished folder is left")
    go_on(trial, job)


def files_may_not_grow(trial: Trial) -> None:
    """A limit on the size of files, by the system: whichever file reaches it first cannot be written."""
    limit = int(math.exp(trial.random.uniform(math.log(4_000), math.log(300_000))))
    trial.note = f"files of at most {limit:,} bytes"
    job = trial.lab.job(trial.folder)
    job.run(fault=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))).require(0, 11)
    go_on(trial, job)


def small_disk(trial: Trial) -> None:
    """A disk of a few hundred kB in memory, later enlarged; as an ordinary user a limit on files instead."""
    size = trial.random.randrange(40, 1200)
    job = trial.lab.job(trial.folder)
    spare = trial.number % 2 == 0
    trial.note = f"a disk of {size} kB" + ("" if spare else ", free space not asked for")
    with _disk(trial.folder / "runs", size) as mounted:
        if not mounted:
            files_may_not_grow(trial)
            return
        job.run(fault=None if spare else _ask_for_no_space).require(0, 11)
        require(_mount(trial.folder / "runs", 65536, _REMOUNT), "the disk could not be enlarged")
        job.run(fault=_ask_for_no_space).require(0)
        require(job.adapter() == trial.lab.untouched().adapter, "the adapter is not the uninterrupted run's")


def one(trial: Trial) -> None:
    """Half of them at a call of a save, a quarter by each of the others."""
    (at_a_call, files_may_not_grow, at_a_call, small_disk)[trial.number % 4](trial)


def _ask_for_no_space() -> None:
    put("qdora_fast.system.atomic", SPARE_BYTES=-(2**30))


_REMOUNT = 32


def _mount(folder: Path, kilobytes: int, flags: int = 0) -> bool:
    library = ctypes.CDLL(None, use_errno=True)
    return bool(library.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, f"size={kilobytes}k".encode()) == 0)


@contextmanager
def _disk(folder: Path, kilobytes: int) -> Iterator[bool]:
    folder.mkdir(parents=True)
    mounted = _mount(folder, kilobytes)
    try:
        yield mounted
    finally:
        if mounted:
            ctypes.CDLL(None).umount2(os.fsencode(folder), 2)  # detached even if something is still open there


GROUPS = (
    Group(
        "disk",
        "disk full (ENOSPC, EDQUOT, file size limit, a full tmpfs), EIO, EROFS, EACCES",
        "exit code 11 or 1 in words, the checkpoint before whole, nothing half-written; adapter bit-equal later",
        28,
        240,
        one,
    ),
)
