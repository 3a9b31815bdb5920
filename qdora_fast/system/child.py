"""Python in a process of its own, which finds no module in the working directory.

`python -m` and `python -c` search the working directory before the standard library, and `python FILE` the folder of
the file: a random.py in a folder that somebody sent would be run in place of Python's own. So this is the only file
that names the interpreter. It passes `-P` to the process that it starts, and PYTHONSAFEPATH=1 to those which that
process starts. PYTHONPATH, which the user sets, is searched as always.

The one exception is a script that brings modules of its own and that the user has named (`script`).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

INTERPRETER = sys.executable
_SAFE_PATH = "PYTHONSAFEPATH"


def python(*arguments: str) -> list[str]:
    """The command that runs this Python with `arguments`; start it with `environment()`."""
    return [INTERPRETER, "-P", *arguments]


def environment(*, searched: Path | None = None, **changes: str) -> dict[str, str]:
    """The variables for such a process: this process's own, with `changes`.

    Args:
        searched: a folder in which the process finds modules before those of PYTHONPATH.
    """
    if searched is not None:
        changes["PYTHONPATH"] = os.pathsep.join(filter(None, [str(searched), os.environ.get("PYTHONPATH")]))
    return {**os.environ, _SAFE_PATH: "1", **changes}


def script(path: str, *arguments: str) -> list[str]:
    """The command that runs a file which the user has named and which imports modules that lie beside it; start it
    with `script_environment()`."""
    return [INTERPRETER, path, *arguments]


def script_environment(**changes: str) -> dict[str, str]:
    """The variables for such a script: with PYTHONSAFEPATH it would not find its modules."""
    return {name: value for name, value in os.environ.items() if name != _SAFE_PATH} | changes


def protect_children() -> None:
    """Set PYTHONSAFEPATH for every process that is started from here on, by whatever library."""
    os.environ[_SAFE_PATH] = "1"
