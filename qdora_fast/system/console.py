"""The one console of a process: progress and decisions on standard error, results on standard output.

Whoever has something to say to the user calls a function here; nobody passes a console around. Of the processes of a
run only rank 0 speaks. A report owns its sentences and this module the forms they take: a labelled line, a note, a
progress bar, a table, one JSON object. Secrets are taken out of labelled lines, and no text steers the terminal
(terminal.py).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text

from qdora_fast.system import distributed
from qdora_fast.system.interactive import is_notebook
from qdora_fast.system.notebook import NotebookProgress
from qdora_fast.system.redact import redact
from qdora_fast.system.terminal import Terminal
from qdora_fast.system.visible import escaped, visible

_consoles = {
    # A notebook shows standard error on red, and standard output is taken away while Unsloth may print.
    "stderr": Terminal(file=sys.stdout if is_notebook() else None, stderr=True, soft_wrap=True),
    "stdout": Terminal(soft_wrap=True),
    "other ranks": Terminal(quiet=True),
}


def print(*objects: Any, markup: bool = False, **how: Any) -> None:
    """Text, or anything that rich can draw, on a line of its own; `how` as for rich's `Console.print`."""
    _console().print(*objects, markup=markup, **how)


def result(*objects: Any, markup: bool = False, **how: Any) -> None:
    """The same on standard output: what was asked for."""
    _consoles["stdout"].print(*objects, markup=markup, **how)


def line(label: str, text: str, *, markup: bool = False) -> None:
    """One decision, under its label."""
    print(f"{label.capitalize():<9} {redact(text)}", markup=markup)


def lines(label: str, texts: Iterable[str]) -> None:
    """Several decisions under one label."""
    for number, text in enumerate(texts):
        line("" if number else label, text)


def note(text: str) -> None:
    """Something that happened on the way."""
    line("note", text)


def aside(text: str) -> None:
    """A dim remark beside a conversation."""
    _console().print(text, style="dim", markup=False, soft_wrap=not is_terminal())


def page(text: str) -> None:
    """Text that is laid out already: printed as it is. Whoever laid it out has made foreign text visible."""
    _console().out(text, highlight=False)


def status(text: str) -> Status:
    """A spinner while the block runs; `update` changes its text."""
    return _console().status(Text(visible(text)))


def is_terminal() -> bool:
    """Whether a person is watching: colours, bars and spinners are shown."""
    return _consoles["stderr"].is_terminal


def shows_progress() -> bool:
    """Whether a bar is seen: on a terminal and in a notebook."""
    return is_terminal() or (is_notebook() and distributed.is_main())


def progress(*columns: Any, stays: bool = False) -> Progress:
    """A progress bar that is seen only on a terminal or in a notebook; tasks have the field `message`, shown behind
    `columns`.

    Args:
        stays: it remains in a notebook when it is done.
    """
    if shows_progress() and not is_terminal():
        return NotebookProgress(stays=stays)
    shown = columns or (
        TextColumn("  {task.description}", markup=False),
        BarColumn(bar_width=24),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[message]}", markup=False),
    )
    return Progress(*shown, console=_console(), transient=True, disable=not is_terminal())


@contextmanager
def counting_bytes(total: int, what: str = "merging") -> Iterator[Callable[[int], None]]:
    """A progress bar over `total` bytes; call what the block gets with the number of bytes just written."""
    with progress() as shown:
        task = shown.add_task(what, total=total, message="")
        yield lambda count: shown.advance(task, count)


@contextmanager
def counting_rows(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A progress bar over rows; without a total it only counts."""
    with progress() as shown:
        task = shown.add_task(what, total=total, message="")
        done = [0]

        def on_rows(count: int) -> None:
            done[0] += count
            shown.update(task, completed=done[0], message=f"{done[0]:,} rows")

        yield on_rows


@contextmanager
def use(stderr: Terminal) -> Iterator[None]:
    """Everything that goes to standard error goes to `stderr` while the block runs; quiet consoles print nothing."""
    before = _consoles["stderr"]
    _consoles["stderr"] = stderr
    try:
        yield
    finally:
        _consoles["stderr"] = before


def json_line(content: Any) -> str:
    """One JSON object on one line, which a terminal can show."""
    return escaped(json.dumps(content, ensure_ascii=False))


def grid(first: str, *columns: str) -> Table:
    """An empty table without lines, whose figures stand to the right under the names of their columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def short(text: str, most: int = 160) -> str:
    """The text on one line, cut."""
    folded = " ".join(visible(redact(text)).split())
    return folded if len(folded) <= most else f"{folded[: most - 1]}…"


def clock(seconds: float) -> str:
    """95 → 1:35 min, 5400 → 1:30 h."""
    total = round(seconds)
    if total < 3600:
        return f"{total // 60}:{total % 60:02} min"
    return f"{total // 3600}:{total % 3600 // 60:02} h"


def time_range(seconds: tuple[float, float]) -> str:
    """A time and its uncertainty: 2:10 to 2:40 min."""
    early, late = map(clock, seconds)
    if early == late:
        return late
    return f"{early.removesuffix(late[-4:]) if early[-4:] == late[-4:] else early} to {late}"


def _console() -> Terminal:
    """The console, quiet on every rank but 0."""
    return _consoles["stderr" if distributed.is_main() else "other ranks"]
