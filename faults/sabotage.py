"""Our own code broken on purpose, one promise at a time: a matrix that stays green then is worthless.

Each way names the trials that must turn red. `make faults ARGS="--sabotage all"` does them all, and so
do the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.victim import put


@dataclass(frozen=True)
class Sabotage:
    """One way to break what is promised."""

    words: str
    noticed_by: tuple[str, int, int]
    """The group that must turn red, and the numbers of the first and last of its trials that are done."""
    do: Callable[[], None]


def _written_in_place() -> None:
    @contextmanager
    def staged_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
        out.mkdir(parents=True, exist_ok=True)
        yield out

    put("qdora_fast.training.checkpoint", staged_folder=staged_folder)


def _lost_runs_start_from_zero() -> None:
    from qdora_fast.recipes.resume import NEW, resume_run
    from qdora_fast.system.errors import CheckpointError

    def quietly(*about: Any) -> Any:
        try:
            return resume_run(*about)
        except CheckpointError:
            return NEW

    put("qdora_fast.recipes.train", resume_run=quietly)


def _signals_are_not_heard() -> None:
    from qdora_fast.training.signals import Requests

    put("qdora_fast.recipes.fit", listening=lambda say: nullcontext(Requests()))


def _identity_is_not_compared() -> None:
    for module in ("qdora_fast.recipes.train", "qdora_fast.recipes.fit"):
        put(module, require_same=_nothing)


def _disk_errors_are_not_translated() -> None:
    for module in ("qdora_fast.training.checkpoint", "qdora_fast.recipes.train"):
        put(module, disk_errors=lambda *_, **__: nullcontext())


def _nobody_looks_at_numbers() -> None:
    for module in ("qdora_fast.training.checkpoint", "qdora_fast.training.nonfinite"):
        put(module, require_finite=_nothing)


def _nothing(*_: Any, **__: Any) -> None:
    """In place of what should be done."""


SABOTAGES = {
    "manifest": Sabotage(
        "changed files are not noticed",
        ("flip", 0, 3),
        lambda: put("qdora_fast.training.resume", problems=lambda folder: []),
    ),
    "staging": Sabotage("checkpoints are written in place", ("save", 1, 1), _written_in_place),
    "flush": Sabotage(
        "nothing is flushed to the disk", ("power", 4, 4), lambda: put("qdora_fast.system.atomic", _flush=_nothing)
    ),
    "generators": Sabotage(
        "random generators are not put back",
        ("grid", 1, 1),
        lambda: put("qdora_fast.training.checkpoint", set_random_state=_nothing),
    ),
    "optimizer": Sabotage(
        "the optimizer starts afresh",
        ("grid", 0, 0),
        lambda: put("qdora_fast.training.checkpoint", load_optimizer_state=_nothing),
    ),
    "identity": Sabotage("other runs are not told apart", ("foreign", 10, 10), _identity_is_not_compared),
    "settings": Sabotage(
        "other settings are not told apart",
        ("foreign", 4, 4),
        lambda: put("qdora_fast.config.recorded", differences=lambda *_: []),
    ),
    "signals": Sabotage("signals are not heard", ("signal", 0, 0), _signals_are_not_heard),
    "words": Sabotage(
        "a full disk is a traceback",
        ("disk", 0, 0),
        _disk_errors_are_not_translated,
    ),
    "finite": Sabotage("nobody looks whether weights are finite", ("nonfinite", 2, 2), _nobody_looks_at_numbers),
    "lock": Sabotage(
        "nobody locks", ("lock", 1, 1), lambda: put("qdora_fast.recipes.train", locked=lambda folder: nullcontext())
    ),
    "zero": Sabotage("a run without a whole checkpoint starts anew", ("lost", 0, 0), _lost_runs_start_from_zero),
}
