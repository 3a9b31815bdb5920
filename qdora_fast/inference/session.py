"""A conversation at the terminal, or one answer for a script.

Answers go to standard output and nothing else does, so that `--once` can be piped. What can be refused is refused
before weights are read: a wrong folder, a template that takes no system message, a comparison without a base.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from qdora_fast.inference import screen
from qdora_fast.inference.conversation import Conversation, SamplingParams
from qdora_fast.inference.loading import Source, load_source
from qdora_fast.system import console
from qdora_fast.system.errors import ConfigError, OutOfMemory
from qdora_fast.system.paths import typed

Sides = dict[str, Conversation]
"""Who answers, by title."""


def chat(
    source: Source,
    *,
    once: str | None = None,
    system: str | None = None,
    compare: bool = False,
    sampling: SamplingParams | None = None,
) -> None:
    """Hold a conversation until end of input, or answer one message.

    Args:
        once: the one message, see `read_once`.
        system: the system message.
        compare: ask the base, too.

    Raises:
        ConfigError: see `Conversation.say`; or `compare` with a merged model.
    """
    sampling = sampling or SamplingParams()
    if compare:
        _require_base(source)
    _check_system(source, system)
    with screen.loading(source):
        chat_model = load_source(source)
    titles = {"base": True, "tuned": False} if compare else {"tuned": False}
    sides = {title: Conversation(chat_model, base=base, system=system) for title, base in titles.items()}
    if once is not None:
        _exchange(sides, once, sampling)
        return
    screen.conversation(source, sampling, compare=compare)
    _talk(sides, sampling)


def read_once(once: str) -> str:
    """The text of `--once`; of `-` what standard input holds.

    Raises:
        ConfigError: it is empty.
    """
    text = sys.stdin.read() if once == "-" else once
    if not text.strip():
        raise ConfigError("--once: the message is empty")
    return text


def _check_system(source: Source, system: str | None) -> None:
    """Raise ConfigError when the template takes no system message."""
    if system:
        source.prompt([{"role": "system", "content": system}, {"role": "user", "content": "Hello"}])


def _talk(sides: Sides, sampling: SamplingParams) -> None:
    """Messages and commands until the end of input."""
    _edit_lines()
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    console.aside("/help says what can be typed")
    while True:
        try:
            typed = input("you> " if on_terminal else "")
            if typed.startswith("/"):
                _obey(typed, sides)
            elif typed.strip():
                _exchange(sides, typed, sampling, stoppable=True)
        except EOFError:
            return
        except KeyboardInterrupt:
            console.aside("\nCtrl-D leaves")
        except (ConfigError, OutOfMemory) as error:
            console.aside(str(error))


def _edit_lines() -> None:
    """History and editing for `input`, where Python was built with them; several pasted lines are one message."""
    with contextlib.suppress(ImportError):
        import readline

        readline.parse_and_bind("set enable-bracketed-paste on")


def _exchange(sides: Sides, text: str, sampling: SamplingParams, *, stoppable: bool = False) -> None:
    """One message, and each side's answer to it."""
    with screen.exchange(list(sides)) as shown:
        for title, side in sides.items():
            with _until_ctrl_c() if stoppable else contextlib.nullcontext() as stop:
                said = side.say(text, sampling, on_text=partial(shown.write, title), stop=stop)
            shown.close(title, screen.about_answer(said, sampling, side.chat_model.source))


def _obey(typed: str, sides: Sides) -> None:
    """Carry out a command.

    Raises:
        ConfigError: the template takes no system message.
        EOFError: /quit.
    """
    command, _, text = typed.partition(" ")
    if command == "/quit":
        raise EOFError
    if command == "/help":
        console.aside(screen.CHAT_HELP)
    elif command == "/new":
        _start_over(sides, next(iter(sides.values())).system)
        console.aside("a new conversation")
    elif command == "/system":
        _start_over(sides, text.strip() or None)
        console.aside(f"a new conversation, {'with' if text.strip() else 'without'} a system message")
    else:
        console.aside(f"no such command: {command}; /help lists them")


def _start_over(sides: Sides, system: str | None) -> None:
    for side in sides.values():
        _check_system(side.chat_model.source, system)
        side.system, side.turns = system, []


@contextmanager
def _until_ctrl_c() -> Iterator[threading.Event]:
    """Set by the first Ctrl-C; a second one interrupts as usual."""
    stop = threading.Event()

    def first(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, usual)

    usual = signal.signal(signal.SIGINT, first)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, usual)


def _require_base(source: Source) -> None:
    """Raise ConfigError where there is no base to compare with."""
    if source.trained is None:
        run = source.folder.resolve().parent
        named = f": qdora-fast chat {typed(run)} --compare" if (run / "model.json").is_file() else ""
        raise ConfigError(f"--compare: the base is not in a merged model; compare with the run it was made from{named}")
