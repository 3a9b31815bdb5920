"""Where text goes, and the forms it takes: a labelled line, a bar, a table, one JSON object."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from qdora_fast.redact import redact

_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_PICTURES |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def new_console() -> Console:
    """Progress and decisions go to standard error, so that standard output stays for results."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def json_line(content: Any) -> str:
    """One JSON object on one line."""
    return json.dumps(content, ensure_ascii=False)


def line(console: Console, label: str, text: str, *, markup: bool = False) -> None:
    """One decision, under its label."""
    console.print(f"{label.capitalize():<9} {visible(redact(text))}", markup=markup)


def listed(console: Console, label: str, texts: Iterable[str]) -> None:
    """Several decisions under one label."""
    for number, text in enumerate(texts):
        line(console, "" if number else label, text)


def bar(console: Console) -> Progress:
    """A progress bar that is seen only on a terminal."""
    columns = (TextColumn("  {task.description}"), BarColumn(bar_width=24), TimeRemainingColumn(compact=True))
    return Progress(
        *columns, TextColumn("{task.fields[said]}"), console=console, transient=True, disable=not console.is_terminal
    )


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


def visible(text: str) -> str:
    """Control characters as pictures, so that no row steers the terminal; line breaks and tabs stay."""
    return text.translate(_PICTURES)
