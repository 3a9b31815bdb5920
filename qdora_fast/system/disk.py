"""What the system reports of a disk that is full, read-only or broken, as an error for the user.

Every save of this package stands inside `disk_errors`: one message, which names the file, says in the system's words
what happened, what is safe, and what to do. Only what a disk does is translated; any other error passes as it is.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qdora_fast.system.errors import DiskSpaceError, QdoraError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BROKEN = (errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENODEV, errno.ENXIO, errno.ESTALE)
"""Damaged, not writable, or no longer there, as a network share may be."""


@contextmanager
def disk_errors(
    path: Path,
    *,
    saved: Callable[[], str] | None = None,
    elsewhere: str = "",
    again: str = "run the same command again",
) -> Iterator[None]:
    """Turn the errors of a disk that is full, read-only or broken into one for the user.

    Args:
        path: named where the system does not say which file it is.
        saved: what is safe, asked for when the error comes: "checkpoint-2 is untouched".
        elsewhere: another way than making room: "or set X to a folder on another disk".
        again: what to do then.

    Raises:
        DiskSpaceError: no room, a quota, or a limit on the size of files.
        QdoraError: not writable, or broken.
    """
    try:
        yield
    except Exception as error:
        number = _system_error(error)
        if number not in (*_FULL, *_BROKEN):
            raise
        full = number in _FULL
        file = getattr(error, "filename", None) or path
        failed = "could not be written" if full else "could not be written or read"
        safe = f"; {saved()}" if saved else ""
        repair = "Free some space there" if full else "Repair the disk or the permissions there"
        raise (DiskSpaceError if full else QdoraError)(
            f"{file}: {failed} ({os.strerror(number)}){safe}. {repair}{elsewhere and f' {elsewhere}'}, then {again}"
        ) from error


def _system_error(error: BaseException) -> int | None:
    """The system's number of an error, None without one; safetensors gives it in the text of its error only."""
    from safetensors import SafetensorError

    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"os error (\d+)", str(error)) if isinstance(error, SafetensorError) else None
    return int(match[1]) if match else None
