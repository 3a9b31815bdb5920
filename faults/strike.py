"""Hitting a run in the middle of a save: at its n-th call of the file system, by death, by an error or by a power cut.

Nothing here knows how a save is done. A first run is watched (`watch`) and every call that changes the
disk while a checkpoint is being saved is written down; each of them, before and after, is a place to
strike at. So whatever the saving does next year is struck at as well.

A power cut is a death after which only what was flushed is left: files without an fsync are empty, and
a rename without an fsync of its folder did not happen. A real disk may keep more; none may keep less.
"""

from __future__ import annotations

import io
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from faults.lab import Job, Lab
from faults.victim import found, put

WATCHED = "watched.txt"
SAVES = (3, 5, 7)
"""Steps at whose save an older checkpoint goes; that of step 4, after an evaluation, stays as the best."""
_CALLS = (
    *(("io", "open"), ("safetensors.torch", "serialize_file")),
    *(("os", name) for name in ("mkdir", "fsync", "rename", "unlink", "rmdir")),
)


@dataclass(frozen=True)
class Place:
    """One call of the file system in a save."""

    number: int
    """Which one, counted from 0."""
    label: str
    """`fsync MANIFEST.json`; a checkpoint's step is N."""

    @property
    def call(self) -> str:
        """open, serialize_file, mkdir, fsync, rename, unlink or rmdir."""
        return self.label.split()[0]


@cache
def places(lab: Lab) -> list[Place]:
    """The calls of one save that also has an older checkpoint to remove; `Lab.set_up` has had them written down."""
    lines = (lab.folder / WATCHED).read_text(encoding="utf-8").splitlines()
    return [Place(number, label) for number, label in enumerate(lines)]


def watch(file: Path, step: int) -> Callable[[], None]:
    """A fault that is none: write down each call in the save of this step."""

    def note(place: Place, when: str) -> None:
        if when == "before":
            with io.FileIO(file, "a") as handle:  # not `open`, which is watched
                handle.write(f"{place.label}\n".encode())

    return lambda: _on_calls(step, note)


def die(step: int, place: Place, when: str) -> Callable[[], None]:
    """A fault: SIGKILL `before` or `after` this call in the save of this step."""

    def strike(here: Place, moment: str) -> None:
        if (here.number, moment) == (place.number, when):
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda: _on_calls(step, strike)


def fail(step: int, place: Place, error: int) -> Callable[[], None]:
    """A fault: this call in the save of this step fails as the system would let it fail."""

    def strike(here: Place, moment: str) -> None:
        if (here.number, moment) == (place.number, "before"):
            words = os.strerror(error)
            if here.call == "serialize_file":
                from safetensors import SafetensorError

                raise SafetensorError(f"Error while serializing: I/O error: {words} (os error {error})")
            raise OSError(error, words)

    return lambda: _on_calls(step, strike)


def cut_power(step: int, place: Place, when: str, job: Job) -> Callable[[], None]:
    """A fault: after this call, only what was flushed is left of the run's checkpoints."""

    def arrange() -> None:
        flushed: set[int] = set()
        renamed: list[tuple[Path, Path]] = []
        fsync, rename = os.fsync, os.rename

        def noting_fsync(descriptor: int) -> None:
            fsync(descriptor)
            flushed.add(os.fstat(descriptor).st_ino)
            folder = Path(f"/proc/self/fd/{descriptor}").resolve()
            renamed[:] = [pair for pair in renamed if pair[1].parent != folder]

        def noting_rename(source: Any, target: Any, **kwargs: Any) -> None:
            rename(source, target, **kwargs)
            renamed.append((Path(source), Path(target)))

        def strike(here: Place, moment: str) -> None:
            if (here.number, moment) != (place.number, when):
                return
            for source, target in reversed(renamed):
                if target.exists() and not source.exists():
                    rename(target, source)
            for file in job.last().path.glob("checkpoints/**/*"):
                if file.is_file() and file.stat().st_ino not in flushed:
                    os.truncate(file, 0)
            os.kill(os.getpid(), signal.SIGKILL)

        put("os", fsync=noting_fsync, rename=noting_rename)
        _on_calls(step, strike)

    return arrange


def _on_calls(step: int, strike: Callable[[Place, str], None]) -> None:
    """In this process, from now on: call `strike` before and after each call of the file system in that save."""
    from qdora_fast.training.checkpoint import DurableCheckpoints

    saving, count = False, 0
    save = DurableCheckpoints._save_checkpoint

    def _save_checkpoint(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal saving
        saving = self.state.global_step == step
        try:
            return save(self, *args, **kwargs)
        finally:
            saving = False

    def wrap(name: str, function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal count, saving
            if not saving or (name == "open" and not _writes(args, kwargs)):
                return function(*args, **kwargs)
            place = Place(count, f"{name} {_named(args)}")
            count += 1
            strike(place, "before")
            try:
                return function(*args, **kwargs)
            finally:
                strike(place, "after")

        return wrapped

    put("qdora_fast.training.checkpoint:DurableCheckpoints", _save_checkpoint=_save_checkpoint)
    for module, name in _CALLS:
        put(module, **{name: wrap(name, found(module, name))})
    put("builtins", open=io.open)


def _writes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    mode = kwargs.get("mode", args[1] if len(args) > 1 else "r")
    return any(letter in mode for letter in "wax+")


def _named(args: tuple[Any, ...]) -> str:
    """The last part of the path that a call is about."""
    place = next((each for each in args if isinstance(each, str | os.PathLike)), None)
    if place is None and args and isinstance(args[0], int):
        place = os.readlink(f"/proc/self/fd/{args[0]}")
    return re.sub(r"\d+", "N", Path(str(place)).name) if place is not None else ""
