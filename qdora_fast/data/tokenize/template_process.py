"""Chat templates compute in a process that may be ended: `render` is the only place where one is compiled or run.

Jinja's sandbox keeps a template from the system and lets it compute without end: loops in loops, 9 ** (9 ** 8), text
that doubles. Some of that is one call in C, which no exception reaches, and a thread cannot be ended. So templates run
in a forked process that does nothing else, under limits that the kernel keeps: seconds of processor time (a right
template on a busy machine is not refused) and memory beyond its own size. A signal at the limit becomes an exception
with the line of the template; if that cannot be raised, a second one ends the process, and the next call forks another.
Workers that prepare rows are such processes themselves (`be_worker`), so that rows do not travel between processes.

The process is forked before anything but a tokenizer is loaded, holds none of the parent's files, and uses no GPU.
Environment and filters are those of Transformers, so the text is the one that others get; only `**` and `*` are looked
at before they are computed.

What it does not limit: templates that a library renders by itself (Unsloth tries one out while it loads a base).
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection
from threading import Lock
from typing import Any

from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.system.errors import ConfigError, first_line
from qdora_fast.system.limits import (
    TEMPLATE_CHARACTERS,
    TEMPLATE_FAILURES,
    TEMPLATE_INTEGER_BITS,
    TEMPLATE_MEMORY_BYTES,
    TEMPLATE_OUTPUT_CHARACTERS,
    TEMPLATE_OUTPUT_TIMES,
    TEMPLATE_SECONDS,
)

PATIENCE = 20
"""Seconds without an answer and without processor time, after which the process hangs; no template can bring that
about."""
_FIX = "write a .jinja file that prints the messages alone, and name it in data.template"
_TEXT, _REFUSED, _LIMIT = b"t", b"r", b"l"


class BeyondLimits(RejectedRow):
    """The template computes or prints more than it may."""


def render(text: str, variables: Mapping[str, Any]) -> str:
    """What a template prints, as `transformers` has it.

    Args:
        text: its Jinja source.
        variables: `messages` and what else it is given, the special tokens among them.

    Raises:
        RejectedRow: `template_error` with the template's own words; a `BeyondLimits` where it computes too much.
        ConfigError: it has done so `TEMPLATE_FAILURES` times.
    """
    kind, said = _compute(text, variables) if _OWN.is_worker else _OWN.ask(text, variables)
    if kind == _TEXT:
        return said
    if kind == _REFUSED:
        raise RejectedRow("template_error", said)
    _OWN.failures += 1
    if _OWN.failures >= TEMPLATE_FAILURES:
        raise ConfigError(f"the chat template was stopped {_OWN.failures} times: {said}; {_FIX}")
    raise BeyondLimits("template_error", said)


def check_limits(text: str, name: str) -> None:
    """Raise ConfigError for a template that computes too much even for a question and an answer; `name` says whose it
    is. What else it may raise is not looked at."""
    probe = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    given = {"messages": probe, "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": False, "tools": None}
    try:
        render(text, given)
    except BeyondLimits as error:
        raise ConfigError(f"{name}: {error.detail}; {_FIX}") from error
    except RejectedRow:
        pass


def be_worker() -> None:
    """Let this process render by itself: it is one of those that may be ended. Called anew for each job, for by then it
    may have grown."""
    _import_transformers()
    _OWN.is_worker, _OWN.room = True, _size() + TEMPLATE_MEMORY_BYTES
    signal.signal(signal.SIGPROF, _raise)
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)


def _import_transformers() -> Any:
    """What compiles templates there, imported before limits hold."""
    from transformers.utils import chat_template_utils

    return chat_template_utils


class _TooMuch(Exception):
    """Raised inside of a template."""


@dataclass
class _Own:
    """What this process has for rendering."""

    is_worker: bool = False
    room: int = 0
    """Bytes of address space that it may have while a template computes."""
    computes: bool = False
    """Whether a template computes in this process."""
    failures: int = 0
    pid: int = 0
    """Of the process that has forked the other end of `pipe`."""
    pipe: Connection | None = None
    process: Any = None

    def ask(self, text: str, variables: Mapping[str, Any]) -> tuple[bytes, str]:
        """`_compute` in the other process."""
        with _LOCK:
            if self.pipe is None or self.pid != os.getpid() or not self.process.is_alive():
                self._fork()
            assert self.pipe is not None
            try:
                self.pipe.send((text, dict(variables)))
                if self._answers():
                    answer = self.pipe.recv_bytes()
                    return answer[:1], answer[1:].decode(errors="surrogatepass")
            except (EOFError, OSError):
                pass
            self.process.kill()
            self.pipe.close()
            self.pipe = None
        return _LIMIT, f"it computes for more than {TEMPLATE_SECONDS} s in a single step"

    def _answers(self) -> bool:
        """Whether there is an answer; a busy machine may keep the process waiting for long."""
        assert self.pipe is not None
        used = -1
        while not self.pipe.poll(PATIENCE):
            before, used = used, _processor_time(self.process.pid)
            if used == before:
                return False
        return True

    def _fork(self) -> None:
        _import_transformers()
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.pid, self.process = os.getpid(), context.Process(target=_answer, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()


_OWN, _LOCK = _Own(), Lock()


def _answer(pipe: Connection) -> None:
    """In the forked process: answer until the other end is closed."""
    import resource  # not on every system that imports this

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    last = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    os.closerange(3, pipe.fileno())  # locks and ports of the parent are its own
    os.closerange(pipe.fileno() + 1, last if last != resource.RLIM_INFINITY else 2**16)
    gc.freeze()
    be_worker()
    try:
        while True:
            kind, said = _compute(*pipe.recv())
            pipe.send_bytes(kind + said.encode(errors="surrogatepass"))
    except (EOFError, OSError):
        os._exit(0)


def _compute(text: str, variables: Mapping[str, Any], *, again: bool = True) -> tuple[bytes, str]:
    """What became of it, and the text or the reason.

    Args:
        again: try once more where memory ran out because this process has grown since its limit was set.
    """
    try:
        made = _within_limits(text, variables)
    except _TooMuch as error:
        return _LIMIT, f"it {error}{_line(error)}"
    except MemoryError as error:
        line = _line(error)
    except RecursionError as error:
        return _LIMIT, f"it calls itself without end, or is nested too deeply{_line(error)}"
    except Exception as error:  # noqa: BLE001 - whatever it raises is the template's own
        return _REFUSED, first_line(error)
    else:
        return _printed(made, variables)
    # The error is gone, and with it all that the template held: what is left is this process' own.
    gc.collect()
    if again and _size() + TEMPLATE_MEMORY_BYTES > _OWN.room + TEMPLATE_MEMORY_BYTES // 4:
        _OWN.room = _size() + TEMPLATE_MEMORY_BYTES
        return _compute(text, variables, again=False)
    return _LIMIT, f"it needs more than {TEMPLATE_MEMORY_BYTES // 2**20:,} MiB of memory{line}"


def _printed(made: str, variables: Mapping[str, Any]) -> tuple[bytes, str]:
    """The text, unless it is longer than this conversation may become."""
    if len(made) > TEMPLATE_OUTPUT_CHARACTERS:
        given = len(json.dumps([variables["messages"], variables.get("tools")], default=str))
        if len(made) > TEMPLATE_OUTPUT_CHARACTERS + TEMPLATE_OUTPUT_TIMES * given:
            return _LIMIT, f"it prints {len(made):,} characters for a conversation of {given:,}"
    return _TEXT, made


def _within_limits(text: str, variables: Mapping[str, Any]) -> str:
    import resource  # not on every system that imports this

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    room = _OWN.room if soft == resource.RLIM_INFINITY else min(_OWN.room, soft)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (room, hard))
        signal.setitimer(signal.ITIMER_VIRTUAL, TEMPLATE_SECONDS + 1)  # ends the process
        signal.setitimer(signal.ITIMER_PROF, TEMPLATE_SECONDS)
        try:
            _OWN.computes = True
            return str(_compiled(text).render(**variables))
        finally:
            _OWN.computes = False
    finally:  # also where the signal came in the line above
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@lru_cache(maxsize=32)
def _compiled(text: str) -> Any:
    """The template in the environment of Transformers, in which numbers have an end."""
    if len(text) > TEMPLATE_CHARACTERS:
        raise _TooMuch(f"is {len(text):,} characters long, and {TEMPLATE_CHARACTERS:,} are read")
    environment = _import_transformers()._cached_compile_jinja_template("").environment
    environment.intercepted_binops = frozenset({"**", "*"})
    environment.call_binop = lambda _, operator, *both: _bounded(environment.binop_table[operator], operator, *both)
    try:
        return environment.from_string(text)
    except SyntaxError as error:  # of the Python that Jinja has made of it
        raise RecursionError(str(error)) from error


def _bounded(operation: Any, operator: str, left: Any, right: Any) -> Any:
    """The product or power, unless it is a number that would take long to compute."""
    if isinstance(left, int) and isinstance(right, int) and left and right > 0:
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        if bits > TEMPLATE_INTEGER_BITS and abs(left) > 1:
            raise _TooMuch(f"computes a number of {bits:,} bits")
    return operation(left, right)


def _raise(*_: Any) -> None:
    if _OWN.computes:
        raise _TooMuch(f"computes for more than {TEMPLATE_SECONDS} s")


def _line(error: BaseException) -> str:
    """Where in the template it was, if that is known."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename in ("<template>", "<unknown>")]
    return f" (line {lines[-1]})" if lines else ""


def _processor_time(pid: int) -> int:
    """Ticks that a process has used."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        user, system = file.read().rpartition(")")[2].split()[11:13]
    return int(user) + int(system)


def _size() -> int:
    """Bytes of address space that this process has."""
    import resource  # not on every system that imports this

    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
