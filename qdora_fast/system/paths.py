"""Folders that somebody else made: nothing in them leads out.

A link in a model's folder or in a run that was sent along can stand for any file of this machine: a licence that is a
private key would be copied into an export, a log that is a start-up file would be written to. So links must end inside
the folder they are in. Two kinds lead out by design and are allowed: a snapshot in the hub's cache is links into the
`blobs` beside it, and weights are often kept elsewhere (they are read as tensors and in no other way).

Nor is everything that has a name a file: a pipe makes its reader wait for ever, and /dev/zero has no end. What is
neither file nor folder is refused.

What this does not do: restrict what a config names. A path in a config is read because its owner asked for it.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

from qdora_fast.system.errors import RefusedError

WEIGHTS = ".safetensors"
SPECIAL = "neither a file nor a folder (a pipe, a socket or a device)"


def local_path(text: str | Path) -> Path:
    """A path as it was typed. `~` at its beginning is the home folder, unless there is a file of just that name."""
    path = Path(text)
    if os.path.lexists(path):
        return path
    with suppress(RuntimeError):  # no such user
        return path.expanduser()
    return path


def typed(path: str | Path) -> str:
    """A path as it is typed in a shell, for commands that are printed to be copied."""
    text = str(path)
    return shlex.quote(f".{os.sep}{text}" if text.startswith("-") else text)


def plain_file_name(name: object) -> bool:
    """True for the name of a file in the folder itself: an index must not lead elsewhere."""
    return isinstance(name, str) and name not in ("", "..") and Path(name).name == name


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading, if it is one.

    Raises:
        OSError: it cannot be opened, or is a folder, a pipe, a socket or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # without O_NONBLOCK a pipe waits for somebody to write
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(descriptor, "rb")


def refuse_links_out(folder: Path) -> None:
    """Raise RefusedError when a link below a folder leads out of it, or something in it is neither file nor folder.

    The folder itself may be a link.
    """
    refuse_special_files(folder)
    for link in links_out(folder):
        raise RefusedError(
            f"{link}: a link that leads out of {folder} (to {link.resolve()}), which would be read or written as if it "
            "were part of it; put the file itself there, or remove the link"
        )


def refuse_special_files(folder: Path) -> None:
    """Raise RefusedError when something below a folder, or what a link there leads to, is neither file nor folder."""
    for path in _special_files(folder):
        raise RefusedError(f"{path}: {SPECIAL}; remove it")


def links_out(folder: Path) -> Iterator[Path]:
    """The links below a folder that lead out of it."""
    for parent, folders, files in os.walk(folder.resolve()):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink() and path.suffix != WEIGHTS and leads_out(path, folder):
                yield path


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a path below a folder ends outside of it, and of the blobs beside it in the hub's cache."""
    root, end = folder.resolve(), path.resolve()
    inside = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    return not any(end.is_relative_to(each) for each in inside)


def _special_files(folder: Path) -> Iterator[Path]:
    """Pipes, sockets and devices below a folder, links to them included."""
    for place, _, files in os.walk(folder):
        for path in (Path(place, name) for name in files):
            with suppress(OSError):  # a link that leads nowhere
                if not stat.S_ISREG(path.stat().st_mode):
                    yield path
