"""The user's own function between a raw row and a known shape: `data.formatter: FILE.py:function`.

It is the only code that runs beside ours while rows are prepared, and only if the user has allowed it (`own_code.py`);
nothing that lies in a data set can name one. It is given a copy of each row, so that it may change what it gets.
What it does wrong on one row costs that row, with the line of the user's file; what keeps the file from being run
is told at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from qdora_fast.config.code import FORMATTER
from qdora_fast.config.own_code import described, load_function, source_of
from qdora_fast.data.clean.rejects import RejectedRow

Formatter = Callable[[dict[str, Any]], dict[str, Any] | None]


def load_formatter(reference: str) -> Formatter:
    """The function of FILE.py:function.

    Raises:
        ConfigError: it may not be run, there is no such file or function, or the file fails while it is run.
    """
    return load_function(FORMATTER, reference)


def apply(formatter: Formatter, row: dict[str, Any]) -> dict[str, Any]:
    """What the function makes of a copy of the row.

    Raises:
        RejectedRow: it raised, or returned neither a dictionary nor None (`formatter_failed`), or None (`left_out`).
    """
    given = copy.deepcopy(row)
    try:
        made = formatter(given)
    except Exception as error:  # the user's function may raise anything
        raise RejectedRow("formatter_failed", described(error, _file_of(formatter))) from error
    if made is None:
        raise RejectedRow("left_out")
    if not isinstance(made, dict):
        raise RejectedRow("formatter_failed", f"it returned a value of type {type(made).__name__}")
    return made


def formatter_source(reference: str) -> bytes:
    """The bytes of the file of FILE.py:function; nothing is run.

    Raises:
        ConfigError: no such file.
    """
    return source_of(FORMATTER, reference)


def _file_of(formatter: Any) -> str:
    return str(formatter.__code__.co_filename)
