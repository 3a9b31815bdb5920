"""Values as Markdown that says just what they say: nothing in them becomes a heading, a link, a table cell or a tag.

For model cards, whose figures are ours and whose names are not: a run, a reviewer, a column may be called anything.
Block markup needs no care here, since every value stands inside a line.
"""

from __future__ import annotations

import re


def fenced(text: str, language: str) -> list[str]:
    """A block of code whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [f"{fence}{language}", text, fence]


def code(value: object) -> str:
    """For between backticks: one line, without backticks."""
    return " ".join(str(value).replace("`", "'").split())


def escaped(value: object) -> str:
    """One line of Markdown that says just this: no markup, no table cell, no link comes of it."""
    line = " ".join(str(value).split())
    line = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", re.sub(r"&(?=#?\w+;)", "&amp;", line))
    return re.sub(r"([\\`*\[\]|>])", r"\\\1", line)
