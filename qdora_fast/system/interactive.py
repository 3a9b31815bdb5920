"""Whether this process is IPython, and whether it is the kernel of a notebook. Asked of IPython, if it was imported.

A shell with a kernel is a notebook (Jupyter, Colab, VS Code and others); IPython in a terminal has none and is a
terminal like any other.
"""

from __future__ import annotations

import sys
from typing import Any


def shell() -> Any | None:
    """IPython's shell in this process; None: there is none."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    return getattr(shell(), "kernel", None) is not None
