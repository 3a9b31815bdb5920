"""Foreign text on its way to a terminal: shown as text, never obeyed.

A column's name, a template's error or a model's answer can hold escape sequences that move the cursor, rename the
window or fill the clipboard, and marks of direction that make a line read otherwise than it is written. `visible` turns
all of these into pictures. It stands at three doors: the message of every error, all strings that a console of ours
prints, and standard output and error of the commands as the last net, tracebacks and other libraries included. There
only a console of ours may style its text, and progress bars of libraries may move up a line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from qdora_fast.system.interactive import is_notebook
from qdora_fast.system.visible import visible

SHOWN_AT_ONCE = 2
_BARS = re.compile(r"(?:\n|\x1b\[A)*")
"""What tqdm writes to come from one of its bars to another; its bars begin with a carriage return."""


class Terminal(Console):
    """A rich console that prints strings as they are: no control character, markup or emoji code of theirs acts."""

    def __init__(self, **options: Any) -> None:
        # In a notebook, lines of text: rich would make a box of HTML of each. ipykernel's stream is no terminal.
        plain = {"highlight": False, "markup": False, "emoji": False, "force_jupyter": False}
        plain |= {"force_terminal": False} if is_notebook() else {}
        super().__init__(**{**plain, **options})

    @property
    def file(self) -> Any:
        """Where it writes to: past the last net, since what styles its text is its own."""
        stream = super().file
        return getattr(stream, "styled", stream)

    @file.setter
    def file(self, stream: Any) -> None:
        """As rich's."""
        self._file = stream

    def render_str(self, text: str, **how: Any) -> Text:
        """As rich's, of text that cannot act."""
        return super().render_str(visible(text), **how)


class Guarded:
    """A text stream that redacts what is written to it and shows what would steer a terminal.

    A secret may come in pieces. So the end of a text that may be the beginning of one is held back until more comes,
    or the process ends. Anything else, such as a progress bar, is written at once.

    Args:
        unfinished: how many characters at the end of a text to hold back.

    Attributes:
        styled: the same for what a `Terminal` has rendered.
    """

    def __init__(
        self,
        stream: TextIO,
        redact: Any,
        *,
        unfinished: Callable[[str], int] = lambda _text: 0,
        beside: Guarded | None = None,
    ) -> None:
        self._stream, self._redact, self._unfinished = stream, redact, unfinished
        self._held, self._beside = "", beside
        self.styled = self if beside else Guarded(stream, redact, unfinished=unfinished, beside=self)

    def write(self, text: str) -> int:
        """As a text stream's."""
        other = self._beside or self.styled
        if other is not self:
            other.release()
        together = self._held + text
        held = self._unfinished(together)
        self._held = together[len(together) - held :]
        self._emit(together[: len(together) - held])
        return len(text)

    def flush(self) -> None:
        """As a text stream's. One or two letters are no longer held: they may end a question to the user."""
        if len(self._held) <= SHOWN_AT_ONCE:
            self.release()
        self._stream.flush()

    def release(self) -> None:
        """Write what was held back."""
        held, self._held = self._held, ""
        self._emit(held)

    def _emit(self, text: str) -> None:
        if not text:
            return
        shown = self._redact(text)
        plain = self._beside or _BARS.fullmatch(shown)
        self._stream.write(shown if plain else "\r".join(map(visible, shown.split("\r"))))

    def writelines(self, lines: Any) -> None:
        """As a text stream's."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
