"""Code that a config or a run names is not run, unless the command line says so or its user allowed it before.

A config is passed around, and so is the folder of a run; both may name a file of Python (`config/code.py` says which
settings do). Such a file is run when `--own-code FILE` stands on the command line (in Python: `own_code=[FILE]`), or
when its SHA-256 is on the user's own list for that setting (`allowed_code.py`). What the flag lets in is put on the
list: so a user's own runs are resumed, evaluated and compared without a question, and a run from elsewhere is refused,
whatever files it brings. On a terminal the user is asked once; the default is no. Beside this door stands the one for
code that comes with a model (`remote_code.py`).

A file is read once, and the bytes that were hashed are the bytes that are run: no module is searched for, no search
path changes, no bytecode that lies beside it is taken. Only a function that is defined in that very file is handed
out. What this does not do: make code safe that was let in, or look at what it imports.
"""

from __future__ import annotations

import difflib
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import file_digest, sha256
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from qdora_fast.config import Config, allowed_code
from qdora_fast.config.allowed_code import Entry
from qdora_fast.config.code import code_named, file_of, split, with_code, without_folder
from qdora_fast.system import distributed
from qdora_fast.system.errors import ConfigError, RefusedError
from qdora_fast.system.json_files import NotJson, read_limited
from qdora_fast.system.paths import local_path, refuse_links_out
from qdora_fast.system.redact import redact

FLAG = "--own-code"
LONGEST_MESSAGE = 200
FUNCTIONS_SHOWN = 8
BYTECODE = "__pycache__"

Ask = Callable[[str], bool]
"""Shows a text and asks whether the code it is about may run; False where nobody can answer."""


@dataclass(frozen=True)
class Code:
    """A file (for task_folder: a folder) that a setting names, as it is now."""

    setting: str
    path: Path
    size: int
    sha256: str


@dataclass(frozen=True)
class _Said:
    """What the command says about code: hashes of the files after the flag, and how to ask."""

    hashes: frozenset[str] = frozenset()
    ask: Ask | None = None


_NOTHING = _Said()
_said: ContextVar[_Said] = ContextVar("own_code_said", default=_NOTHING)


@contextmanager
def allow_own_code(files: Sequence[str | Path], *, ask: Ask | None = None) -> Iterator[None]:
    """Inside, these files are run where a setting names them, or a copy of them.

    Args:
        ask: asks the user about a file that is neither among them nor on the list.

    Raises:
        ConfigError: one of them is not there.
    """
    earlier = _said.get()
    hashes = {_look(FLAG, local_path(file))[0].sha256 for file in files}
    before = _said.set(_Said(earlier.hashes | hashes, ask or earlier.ask))
    try:
        yield
    finally:
        _said.reset(before)


def require_code_allowed(config: Config, *settings: str) -> None:
    """Make sure, before anything long begins, that the code which these settings of a config name may run.

    Raises:
        RefusedError: some of it may not; names each file and what to type.
        ConfigError: a file is not there.
    """
    named = [each for each in dict.fromkeys(code_named(config.model_dump())) if each[0] in settings]
    _require([_look(setting, file_of(setting, text))[0] for setting, text in named])


def load_function(setting: str, reference: str) -> FunctionType:
    """The function that FILE.py:function names.

    Raises:
        RefusedError: the file may not be run.
        ConfigError: no such file or function, or the file fails while it is run.
    """
    code, source = _look(setting, file_of(setting, reference))
    name = split(reference)[1]
    _require([code])
    module = _run(code, source)
    where = f"{setting}: {code.path}"
    found = getattr(module, name, None)
    if isinstance(found, FunctionType) and found.__code__.co_filename == str(code.path):
        return found
    if not hasattr(module, name):
        raise ConfigError(f"{where} has no function {name!r}; {_functions(module, code.path)}")
    raise ConfigError(f"{where}: {name} is no function that is defined in this file; {_functions(module, code.path)}")


def source_of(setting: str, reference: str) -> bytes:
    """The bytes of the file that FILE.py:function names; nothing is run.

    Raises:
        ConfigError: no such file.
    """
    return _look(setting, file_of(setting, reference))[1]


def require_folder_allowed(setting: str, folder: Path) -> None:
    """Make sure that a folder of code may be run; every file in it counts.

    Raises:
        RefusedError: it may not, or a link in it leads out.
    """
    _require([_look(setting, Path(os.path.abspath(folder)))[0]])


def by_content(tree: Any) -> Any:
    """A config (as a dictionary) in which code is named by what is in its file: equal where the same code would run."""

    def named(setting: str, _keys: tuple[str, ...], text: str) -> str:
        try:
            return f"{without_folder(text)} (SHA-256 {_look(setting, file_of(setting, text))[0].sha256[:12]})"
        except ConfigError:
            return f"{without_folder(text)} (cannot be read)"

    return with_code(tree, named)


def described(error: BaseException, path: str) -> str:
    """ "ValueError: bad date (my_rows.py:12)": what code raised, in one line of text that can be printed.

    Args:
        path: the code's file, of which the last line that was running is named.
    """
    lines = redact(error.msg if isinstance(error, SyntaxError) else str(error)).splitlines()  # before it is cut
    said = f"{type(error).__name__}{f': {lines[0][:LONGEST_MESSAGE]}' if lines else ''}"
    return said.encode("utf-8", "backslashreplace").decode() + _place(error, path)


def _require(named: Sequence[Code]) -> None:
    """Raise RefusedError unless all of it may run; what the command lets in is remembered."""
    if not named:
        return
    said, known = _said.get(), allowed_code.entries()
    allowed = {(each.sha256, each.setting) for each in known}
    new = [code for code in named if (code.sha256, code.setting) not in allowed]
    unsaid = [code for code in new if code.sha256 not in said.hashes]
    if unsaid:
        listed = "\n".join(f"  - {each}" for each in _spoken(unsaid, known))
        text = f"code that a config or a run names is run only when you say so:\n{listed}"
        if said.ask is None or not distributed.is_main() or not said.ask(text):
            words = " ".join(f"{FLAG} {shlex.quote(str(code.path))}" for code in unsaid)
            files = ", ".join(repr(str(code.path)) for code in unsaid)
            raise RefusedError(
                f"{text}\n  Read it; to run it, add {words} to the command (in Python: own_code=[{files}])"
            )
    if new:
        allowed_code.add([Entry(code.sha256, code.setting, str(code.path)) for code in new])


def _spoken(named: Sequence[Code], known: Sequence[Entry]) -> Iterator[str]:
    for code in named:
        before = [each.date for each in known if (each.setting, each.path) == (code.setting, str(code.path))]
        changed = f"; it has changed since you allowed it on {before[-1]}" if before else ""
        yield f"{code.setting} names {code.path} ({code.size:,} bytes, SHA-256 {code.sha256}{changed})"


def _look(setting: str, path: Path) -> tuple[Code, bytes]:
    """What is there now, and the bytes of a file; nothing is run."""
    if path.is_dir():
        refuse_links_out(path)
        size, digest = 0, sha256()
        for file in sorted(each for each in path.rglob("*") if each.is_file() and BYTECODE not in each.parts):
            with file.open("rb") as opened:
                of_file = file_digest(opened, "sha256").hexdigest()
            size += file.stat().st_size
            digest.update(f"{file.relative_to(path).as_posix()}\0{of_file}\n".encode())
        return Code(setting, path, size, digest.hexdigest()), b""
    try:
        if not path.exists():
            raise FileNotFoundError
        source = read_limited(path)
    except NotJson as error:
        raise ConfigError(f"{setting}: {path}: {error}") from None
    except OSError as error:
        beside = [each.name for each in path.parent.glob("*.py")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.5)
        why = f": {error.strerror}" if error.strerror else f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"{setting}: there is no file {path}{why} (a path in a config file starts at the folder of the config)"
        ) from None
    return Code(setting, path, len(source), sha256(source).hexdigest()), source


class _Read(SourceFileLoader):
    """Runs the bytes that were hashed, not what lies there a moment later or in a cache of bytecode."""

    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType | None:
        """The code of the module."""
        return self.source_to_code(self._source, self.path)


def _run(code: Code, source: bytes) -> ModuleType:
    """The module that the file makes; a file that was run before and has not changed is not run again."""
    name = f"qdora_fast_own_{code.sha256}_{sha256(os.fsencode(code.path)).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, code.path, loader=_Read(name, str(code.path), source))
    assert spec and spec.loader
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look for their module there
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # the user's file may raise anything
        del sys.modules[name]
        if not isinstance(error, Exception | SystemExit):
            raise
        alone = (
            "; code that a setting names is one file: of its own modules it finds none that are not installed"
            if isinstance(error, ModuleNotFoundError)
            else ""
        )
        raise ConfigError(
            f"{code.setting}: running {code.path} failed: {described(error, str(code.path))}{alone}"
        ) from error
    return module


def _functions(module: ModuleType, path: Path) -> str:
    names = [
        name
        for name, value in vars(module).items()
        if isinstance(value, FunctionType) and value.__code__.co_filename == str(path) and not name.startswith("_")
    ]
    more = f" and {len(names) - FUNCTIONS_SHOWN} more" if len(names) > FUNCTIONS_SHOWN else ""
    return f"it has {', '.join(names[:FUNCTIONS_SHOWN])}{more}" if names else "it has none at all"


def _place(error: BaseException, path: str) -> str:
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f" ({Path(error.filename).name}:{error.lineno})"
    steps = traceback.walk_tb(error.__traceback__)
    numbers = [number for frame, number in steps if frame.f_code.co_filename == path]
    return f" ({Path(path).name}:{numbers[-1]})" if numbers else ""
