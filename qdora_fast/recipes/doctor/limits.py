"""The table of limits on what is read: every constant of `system/limits.py` with its value and what it is for."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass
from itertools import pairwise

from qdora_fast.system import console, limits


@dataclass(frozen=True)
class Limit:
    """One limit."""

    name: str
    value: int
    about: str
    """Unit and meaning, one sentence."""


def all_limits() -> list[Limit]:
    """In the order of the file, from its own text: each constant stands above the words about it."""
    body = ast.parse(inspect.getsource(limits)).body
    found = []
    for constant, words in pairwise(body):
        if isinstance(constant, ast.Assign) and isinstance(words, ast.Expr) and isinstance(words.value, ast.Constant):
            (target,) = constant.targets
            assert isinstance(target, ast.Name)
            about = " ".join(str(words.value.value).split()).partition(". ")[0].removesuffix(".")
            found.append(Limit(target.id, getattr(limits, target.id), about))
    return found


def show_limits(*, as_json: bool) -> None:
    """Print them, one a line."""
    found = all_limits()
    if as_json:
        console.result(console.json_line({"limits": {each.name: each.value for each in found}}))
        return
    console.result("What a file or request may ask for. Beyond it there is one error that names the file.\n")
    width, digits = max(len(each.name) for each in found), max(len(f"{each.value:,}") for each in found)
    for each in found:
        console.result(f"{each.name:<{width}}  {each.value:>{digits},}  {each.about}")
