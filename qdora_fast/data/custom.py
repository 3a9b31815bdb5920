"""The user's own function between a raw row and a known shape: `data.formatter: module:function`.

It is the only code that runs beside ours while rows are prepared, and it is the user's, named in the user's config;
nothing that lies in a data set can name one. It is given a copy of each row, so that it may change what it gets.
What it does wrong on one row costs that row, with the line of the user's file; what keeps it from being imported
is told at once.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from qdora_fast.data.rejects import RejectedRow
from qdora_fast.errors import ConfigError
from qdora_fast.redact import redact

Formatter = Callable[[dict[str, Any]], dict[str, Any] | None]

LONGEST_MESSAGE = 200
FUNCTIONS_SHOWN = 8
_IMPORTED: dict[str, str] = {}
"""SHA-256 of each module's file when we imported it: a notebook's user edits the file and tries again."""


def load_formatter(name: str) -> Formatter:
    """Import "module:function"; a module in the working directory comes before an installed one.

    A module whose file has changed since is imported anew.

    Raises:
        ConfigError: no such module or function, or the module fails while it is imported.
    """
    module_name, _, function_name = name.partition(":")
    module = _import(module_name)
    function = getattr(module, function_name, None)
    if callable(function):
        return function
    where = f"data.formatter: {module_name} ({getattr(module, '__file__', None) or 'built in'})"
    if hasattr(module, function_name):
        raise ConfigError(f"{where}: {function_name} is of type {type(function).__name__}, not a function")
    raise ConfigError(f"{where} has no function {function_name!r}; {_functions(module)}")


def apply(formatter: Formatter, row: dict[str, Any]) -> dict[str, Any]:
    """What the function makes of a copy of the row.

    Raises:
        RejectedRow: it raised, or returned neither a dictionary nor None (`formatter_failed`), or None (`left_out`).
    """
    given = copy.deepcopy(row)
    try:
        made = formatter(given)
    except Exception as error:  # the user's function may raise anything
        raise RejectedRow("formatter_failed", _described(error, _file_of(formatter))) from error
    if made is None:
        raise RejectedRow("left_out")
    if not isinstance(made, dict):
        raise RejectedRow("formatter_failed", f"it returned a value of type {type(made).__name__}")
    return made


def formatter_source(name: str) -> bytes:
    """The bytes of the file that "module:function" is in; empty for a module without one.

    Raises:
        ConfigError: no such module.
    """
    module_name = name.partition(":")[0]
    with _working_directory_first():
        return _source(module_name)


def _import(name: str) -> ModuleType:
    with _working_directory_first():
        digest = sha256(_source(name)).hexdigest()
        changed = _IMPORTED.get(name, digest) != digest
        try:
            module = importlib.import_module(name)
            if changed:
                module = importlib.reload(module)
        except (Exception, SystemExit) as error:  # the user's module may raise anything
            raise ConfigError(f"data.formatter: importing {name} failed: {_described(error, _origin(name))}") from error
    _IMPORTED[name] = digest
    return module


def _source(name: str) -> bytes:
    path = _origin(name)
    return Path(path).read_bytes() if path and Path(path).is_file() else b""


def _origin(name: str) -> str | None:
    """The module's file, found without running it (only the packages that it is in are imported)."""
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a package that is not there; a module without description, such as __main__
        found = None
    if found is None:
        near = difflib.get_close_matches(name, [path.stem for path in Path.cwd().glob("*.py")], n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"data.formatter: there is no module {name}: neither {name.replace('.', '/')}.py in {Path.cwd()} nor an "
            f"installed one{hint}"
        )
    return found.origin


@contextmanager
def _working_directory_first() -> Iterator[None]:
    """Imports look into the working directory first, see files written a moment ago, and write none themselves."""
    folder, quiet = str(Path.cwd()), sys.dont_write_bytecode
    importlib.invalidate_caches()
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = quiet
        if folder in sys.path:
            sys.path.remove(folder)


def _functions(module: ModuleType) -> str:
    names = [
        name
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]
    more = f" and {len(names) - FUNCTIONS_SHOWN} more" if len(names) > FUNCTIONS_SHOWN else ""
    return f"it has {', '.join(names[:FUNCTIONS_SHOWN])}{more}" if names else "it has none at all"


def _file_of(formatter: Formatter) -> str | None:
    code = getattr(formatter, "__code__", None)
    return code.co_filename if code else None


def _described(error: BaseException, path: str | None) -> str:
    """ "ValueError: bad date (my_rows.py:12)" in one line of text that can be printed."""
    lines = redact(error.msg if isinstance(error, SyntaxError) else str(error)).splitlines()  # before it is cut
    said = f"{type(error).__name__}{f': {lines[0][:LONGEST_MESSAGE]}' if lines else ''}"
    return said.encode("utf-8", "backslashreplace").decode() + _place(error, path)


def _place(error: BaseException, path: str | None) -> str:
    """The last line in the user's file that was running; without one, the last of all."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f" ({Path(error.filename).name}:{error.lineno})"
    frames = list(_frames(error.__traceback__))
    places = [place for place in frames if place[0] == path] or [place for place in frames if place[0] != __file__]
    return f" ({Path(places[-1][0]).name}:{places[-1][1]})" if places else ""


def _frames(trace: TracebackType | None) -> Iterator[tuple[str, int]]:
    for frame, number in traceback.walk_tb(trace):
        yield frame.f_code.co_filename, number
