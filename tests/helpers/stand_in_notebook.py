"""IPython as a notebook's kernel has it, as far as this package asks it: a shell with a kernel, and a display."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def open_notebook(monkeypatch: pytest.MonkeyPatch, *, mode: str = "Context", kernel: object = "a kernel") -> list[Any]:
    """Pretend that this process is a notebook; returns what is displayed, later versions of a display included."""
    shown: list[Any] = []

    def display(content: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw and display_id
        shown.append(content)
        return SimpleNamespace(update=lambda content, raw: shown.append(content))

    traceback = SimpleNamespace(mode=mode, structured_traceback=lambda *error: ["the traceback"])
    ipython, displays = ModuleType("IPython"), ModuleType("IPython.display")
    vars(ipython)["get_ipython"] = lambda: SimpleNamespace(kernel=kernel, InteractiveTB=traceback)
    vars(displays)["display"] = vars(ipython)["display"] = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", displays)
    return shown
