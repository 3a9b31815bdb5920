"""Ctrl-C, SIGTERM and SIGUSR1 while a model is trained.

The first Ctrl-C or SIGTERM is a request: the step in hand is finished, a checkpoint is saved, and
the process ends with 130 or 75 (the same command with --resume continues). The second is an order: the process ends at
once; nothing is left half-written, because whatever is being saved does not have its name yet.
SIGUSR1 saves a checkpoint, and training continues. Handlers are set while training runs and put back after it.

With several processes each gets the signal at its own time, or only one does; they agree at the end
of every step, so that all stop at the same one.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from qdora_fast.system.distributed import all_reduce_max
from qdora_fast.system.errors import Stopped

_CODES: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 75}


@dataclass
class Requests:
    """What signals have asked for so far."""

    stop: int = 0
    """The signal that asked to stop; 0: none."""
    save: bool = False
    """Save a checkpoint now."""
    error: BaseException | None = None
    """Of the user's `on_step`, to be raised when the checkpoint is saved."""

    def fail(self, error: BaseException) -> None:
        """Ask to stop for an error of the user's own function."""
        self.stop, self.error = self.stop or signal.SIGINT, error

    def raise_if_stopped(self, where: str) -> None:
        """Raise Stopped when training ended by a signal, or the error of `on_step`; `where` names the checkpoint."""
        if self.error is not None:
            self.error.add_note(f"raised by on_step; {where} was saved. Continue with the same call and resume=True")
            raise self.error
        if self.stop:
            name = signal.Signals(self.stop).name
            raise Stopped(
                f"stopped by {name}; {where} was saved. Continue with the same command and --resume", _CODES[self.stop]
            )


@contextmanager
def listening(say: Callable[[str], None]) -> Iterator[Requests]:
    """Take signals as requests until the block ends. Outside the main thread, where Python takes none, nothing
    changes."""
    requests = Requests()

    def on_stop(number: int, _: FrameType | None) -> None:
        if requests.stop:
            os._exit(128 + number)
        requests.stop = number
        say(f"{signal.Signals(number).name}: saving a checkpoint after this step; send it once more to end at once")

    def on_save(_: int, __: FrameType | None) -> None:
        requests.save = True

    handlers: dict[int, Callable[[int, FrameType | None], None]] = {signal.SIGINT: on_stop, signal.SIGTERM: on_stop}
    if hasattr(signal, "SIGUSR1"):
        handlers[signal.SIGUSR1] = on_save
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def signal_callback(requests: Requests) -> Any:
    """A Trainer callback that carries requests out at the end of a step."""
    from transformers import TrainerCallback

    class StopAndSave(TrainerCallback):
        """Saves, or saves and stops."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._carry_out(control)
            if requests.stop and not args.load_best_model_at_end:  # there, the evaluation decides what is best
                control.should_evaluate = False

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._carry_out(control)

        on_log = on_evaluate

        def _carry_out(self, control: Any) -> None:
            requests.stop, save = all_reduce_max(requests.stop), all_reduce_max(int(requests.save))
            if requests.stop or save:
                control.should_save = True
                requests.save = False
            if requests.stop:
                control.should_training_stop = True

    return StopAndSave()
