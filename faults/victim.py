"""A run in a forked process: the real command, with its faults, its output in a file, and no connection.

Importing the stack takes ten seconds and a run two, so it is imported once and each run is a fork. Its
CPU clock says how far it is, whatever else the machine does meanwhile: a share of the work, drawn
evenly, is a moment drawn evenly.
"""

from __future__ import annotations

import importlib
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

NO_NETWORK = "tried to connect to"
Fault = Callable[[], None]


class Lost(Exception):
    """A trial that did not pass: what was lost, changed or kept silent."""


def require(holds: bool, otherwise: str) -> None:
    """Raise Lost with these words unless the condition holds."""
    if not holds:
        raise Lost(otherwise)


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    """Exit code; -9 after SIGKILL."""
    said: str
    """All it printed."""
    cpu: float
    """Seconds of CPU it used."""

    def require(self, *codes: int, saying: str = "") -> Ended:
        """Raise Lost unless it ended with one of these codes and this in its words, and with no traceback and no
        attempt to connect."""
        tail = "\n".join(self.said.strip().splitlines()[-12:])
        require(self.code in codes, f"ended with {self.code}, not {' or '.join(map(str, codes))}:\n{tail}")
        require("Traceback (most recent call last)" not in self.said, f"shows a traceback:\n{tail}")
        require(NO_NETWORK not in self.said, f"{NO_NETWORK} somewhere:\n{tail}")
        require(saying in self.said, f"does not say {saying!r}:\n{tail}")
        return self


@dataclass
class Victim:
    """A run in its own process."""

    pid: int
    log: Path
    ended: Ended | None = None

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        return time.clock_gettime(((~self.pid) << 3) | 2)  # Linux's name for the CPU clock of another process

    def strike(self, number: int, *, at: float) -> bool:
        """Send a signal once it has used `at` seconds of CPU; False: it had ended before."""
        while not self._gone():
            if self.cpu() >= at:
                os.kill(self.pid, number)
                return True
            time.sleep(0.002)
        return False

    def waiting(self) -> bool:
        """Whether it still runs."""
        return not self._gone()

    def signal(self, number: int) -> None:
        """Send it a signal, if it is still there."""
        if not self._gone():
            os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Until it has ended."""
        if self.ended is None:
            _, status, usage = os.wait4(self.pid, 0)
            self._note(status, usage)
        assert self.ended is not None
        return self.ended

    def _gone(self) -> bool:
        if self.ended is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self._note(status, usage)
        return self.ended is not None

    def _note(self, status: int, usage: resource.struct_rusage) -> None:
        said = self.log.read_text(encoding="utf-8", errors="replace")
        self.ended = Ended(os.waitstatus_to_exitcode(status), said, usage.ru_utime + usage.ru_stime)


def start(work: Callable[[], None], log: Path) -> Victim:
    """Do `work` in a process of its own; how it ends, by itself or by sys.exit, is the process's exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _be(work, log)
    return Victim(pid, log)


def command(arguments: Sequence[str], fault: Fault | None) -> None:
    """`qdora-fast ARGUMENTS`, with a fault that is called before."""
    from qdora_fast.cli.main import main

    sys.argv = ["qdora-fast", *arguments]
    if fault:
        fault()
    main()


def put(place: str, **replacements: Any) -> None:
    """Replace names of a module, or of a `module:Class`, in this process; it ends with them."""
    for name, value in replacements.items():
        setattr(_owner(place), name, value)


def found(place: str, name: str) -> Any:
    """What is there now."""
    return getattr(_owner(place), name)


def _owner(place: str) -> Any:
    module, _, name = place.partition(":")
    owner = importlib.import_module(module)
    return getattr(owner, name) if name else owner


def _be(work: Callable[[], None], log: Path) -> NoReturn:
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # as Python's own
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.environ["COLUMNS"] = "400"
        _cut_the_network()
        work()
        code = 0
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else int(done.code is not None)
    except BaseException:  # noqa: BLE001 - whatever comes out is what the user would see
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _cut_the_network() -> None:
    def refuse(*place: Any, **_: Any) -> NoReturn:
        print(NO_NETWORK, place[-1], file=sys.stderr)
        raise OSError("there is no network here")

    put("socket:socket", connect=refuse)
    put("socket", getaddrinfo=refuse)
