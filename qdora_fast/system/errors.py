"""Every way a run can end badly, as an exception that carries its exit code.

A user's mistake is an answer, not a crash: each class below is shown as one
message (what happened, where, how to fix it) and ends the process with its own
code, so that scripts can tell "the config is wrong" from "the proof failed".
Anything that is not one of these is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import traceback
import typing

from qdora_fast.system.interactive import shell
from qdora_fast.system.redact import redact
from qdora_fast.system.visible import visible


class QdoraError(Exception):
    """Base of all errors meant for the user. The message names the place and the fix."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(visible(redact(message)))

    def _render_traceback_(self, *_: object) -> list[str]:
        """What IPython shows in place of a traceback: the message, which names place and fix. After `%xmode Plain` or
        `%xmode Verbose` the traceback, as of any other exception."""
        shown: typing.Any = getattr(shell(), "InteractiveTB", None)
        if getattr(shown, "mode", "") in ("Plain", "Verbose"):
            lines: list[str] = shown.structured_traceback(type(self), self, self.__traceback__)
            return lines
        return [f"{type(self).__name__}: {self}", "", "(traceback: %xmode Plain, then %tb)"]


class ConfigError(QdoraError):
    """The request is wrong: configuration, arguments, or a combination that cannot work."""

    exit_code = 2


class RefusedError(ConfigError):
    """We could do it, but the result would be broken; the message names the right choices."""


class DiskSpaceError(QdoraError):
    """Not enough free space for what is about to be written."""

    exit_code = 11


class DataError(QdoraError):
    """The rows cannot be read, recognised or trained on; the message names file and line."""

    exit_code = 20


class CheckpointError(QdoraError):
    """No checkpoint to resume from, or it belongs to another run."""

    exit_code = 40


class IntegrityError(QdoraError):
    """Saved weights are incomplete or damaged (for DoRA: a magnitude is missing), or files have changed since they were
    written."""

    exit_code = 41


class ProofError(QdoraError):
    """The exported model is not the model that was trained."""

    exit_code = 42


class NonFiniteError(QdoraError):
    """Training was stopped: losses or gradients were NaN or infinite several times in a row."""

    exit_code = 30


class OutOfMemory(QdoraError):
    """The device's memory is too small, even for the smallest part of a step."""

    exit_code = 31


class RunLocked(QdoraError):
    """Another process works in the run's folder."""

    exit_code = 50


class Stopped(QdoraError):
    """A signal ended the run, and a checkpoint was saved; the same command with --resume continues."""

    exit_code = 75

    def __init__(self, message: str, exit_code: int = 75) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        """75 after SIGTERM, 130 after Ctrl-C."""


class RegressionError(QdoraError):
    """Tuning made the model forget more than `evaluation.mmlu.fail_below` allows."""

    exit_code = 43


class DoesNotFit(QdoraError):
    """The run needs more memory than the card has."""

    exit_code = 10


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of a library's Rust code, which is no Exception and whose class cannot be named."""
    return type(error).__name__ == "PanicException"


def first_line(error: BaseException) -> str:
    """The first line of what somebody else's error says, for a message of ours; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def without_frames(error: Exception) -> Exception:
    """The same error, with its traceback as a note where it is a bug's: one that is raised later must not keep alive
    what was in use when it happened."""
    if not isinstance(error, QdoraError):
        error.add_note("".join(traceback.format_exception(error)))
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
