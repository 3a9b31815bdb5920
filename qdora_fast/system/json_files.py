"""Every JSON file that is read from disk: its size, its shape, and one error where it is not as it should be.

A disk that was full, a copy that broke off and a person who means harm all leave files that parse badly, or parse well
and hold something else. So whoever reads JSON asks here, with the keys that are needed and their types, and gets these
or an error of `errors.py` that names the file, the line, what is wrong and what to do. The sizes are in `limits.py`.

NaN and Infinity are read, since Python's writer writes them for a loss that blew up; where a key must be a whole number
they are refused. Of two equal keys the last counts, as in Transformers and PEFT, so that all readers of a file read the
same. Rows of training data are read by `data/read/readers.py`, which keeps the good rows of a bad file.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any

from qdora_fast.system import console
from qdora_fast.system.errors import IntegrityError, QdoraError
from qdora_fast.system.limits import INTEGER_DIGITS, JSON_DEPTH, JSON_FILE_BYTES, LINE_BYTES
from qdora_fast.system.paths import open_regular

Shape = type | UnionType | Mapping[str, Any] | list[Any]
"""What a value must be: a type (`int | None`); `{"key": Shape, "may_be_missing?": Shape}` for an object, whose other
keys are free; `[Shape]` for a list of such values."""

COPY_AGAIN = "copy or download it again"


class NotJson(ValueError):
    """Text that is not JSON within the limits; says what is wrong, without the file's name."""


class Unfinished(NotJson):
    """Text that may have been JSON before its end was cut off."""


def read_object(
    path: Path,
    shape: Mapping[str, Any] | None = None,
    *,
    error: type[QdoraError] = IntegrityError,
    fix: str = COPY_AGAIN,
) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        shape: the keys that it must have, see `Shape`.
        error: what is raised.
        fix: what the user can do, as the end of the message.

    Raises:
        error: the file is missing, too large, no regular file, not UTF-8, not JSON, or of another shape.
    """
    try:
        value = parse_json(read_limited(path))
        wrong = mismatch(value, shape or {})
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror}); the folder is incomplete: {fix}") from None
    except NotJson as problem:
        raise error(f"{path}: {problem}; {fix}") from None
    if wrong:
        raise error(f"{path}: {wrong}; {fix}")
    return dict(value)


def read_lines(
    path: Path,
    shape: Mapping[str, Any] | None = None,
    *,
    error: type[QdoraError] = IntegrityError,
    fix: str = COPY_AGAIN,
    skip_bad: bool = False,
) -> list[dict[str, Any]]:
    """The objects of a file of one JSON object a line; blank lines are left out.

    A last line without a line break that cannot be read is what a process leaves that was stopped while it wrote: it is
    left out, and the user is told.

    Args:
        shape, error, fix: see `read_object`.
        skip_bad: leave out every line that cannot be read.

    Raises:
        error: the file is missing or no regular file, or a line is no such object; names the line.
    """
    objects: list[dict[str, Any]] = []
    try:
        for number, line in _numbered_lines(path):
            try:
                value = _parse_line(line)
            except NotJson as problem:
                if isinstance(problem, Unfinished) and not line.endswith(b"\n"):
                    _tell_torn(path, number)
                elif not skip_bad:
                    raise error(f"{path}, line {number}: {problem}; {fix}") from None
                continue
            wrong = mismatch(value, shape or {})
            if not wrong:
                objects.append(value)
            elif not skip_bad:
                raise error(f"{path}, line {number}: {wrong}; {fix}")
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror}); {fix}") from None
    return objects


def append_line(path: Path, content: Any) -> None:
    """Add one JSON value as a line of its own, on the disk when this returns; a torn last line is removed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    end_last_line(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(content, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def end_last_line(path: Path) -> None:
    """Make sure that what is appended next starts on a line of its own.

    A last line without a line break is ended if it is JSON, and removed if it is torn.
    """
    try:
        file = path.open("r+b")
    except FileNotFoundError:
        return
    with file:
        end = file.seek(0, os.SEEK_END)
        start = max(0, end - LINE_BYTES)
        file.seek(start)
        tail = file.read()
        if not tail or tail.endswith(b"\n"):
            return
        last = tail.rpartition(b"\n")[2]
        if _is_cut(last):
            file.truncate(end - len(last))
        else:
            file.write(b"\n")


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        NotJson: not UTF-8, not JSON, nested deeper than `JSON_DEPTH`, or with a number longer than `INTEGER_DIGITS`.
    """
    too_deep = f"nested more than {JSON_DEPTH} levels deep"
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        if not decoded.strip():
            raise NotJson("empty")
        value = json.loads(decoded, parse_int=_integer)
    except UnicodeDecodeError as problem:
        kind = Unfinished if problem.reason == "unexpected end of data" else NotJson
        raise kind(f"not UTF-8 text (byte 0x{problem.object[problem.start]:02x})") from None
    except json.JSONDecodeError as problem:
        raise Unfinished(f"not valid JSON ({problem})") from None
    except RecursionError:
        raise NotJson(too_deep) from None
    if is_deep(value):
        raise NotJson(too_deep)
    return value


def mismatch(value: Any, shape: Any, key: str = "") -> str:
    """How a value differs from its shape, in words; "" where it does not.

    Args:
        key: where the value stands, such as `completions.sha256`; "" for all of the text.
    """
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _expected("a list", value, key)
        return next((wrong for each in value if (wrong := mismatch(each, shape[0], key))), "")
    if not isinstance(shape, Mapping):
        return "" if isinstance(value, shape) else _expected(_in_words(shape), value, key)
    if not isinstance(value, dict):
        return _expected("a JSON object", value, key)
    for name, inner in shape.items():
        plain = name.removesuffix("?")
        place = f"{key}.{plain}" if key else plain
        if plain in value:
            wrong = mismatch(value[plain], inner, place)
        else:
            wrong = "" if name.endswith("?") else f"`{place}` is missing"
        if wrong:
            return wrong
    return ""


def is_deep(value: Any) -> bool:
    """Whether lists and objects lie in one another more than `JSON_DEPTH` levels deep."""
    level = [value]
    for _ in range(JSON_DEPTH + 1):
        level = [each for each in level if isinstance(each, dict | list)]
        if not level:
            return False
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
    return True


def read_limited(path: Path, most: int = JSON_FILE_BYTES) -> bytes:
    """The bytes of a regular file.

    Raises:
        OSError: it cannot be read, or is a folder, a pipe or a device.
        NotJson: more than `most` bytes.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise NotJson(f"larger than {most / 2**20:,.0f} MiB")
    return content


def _parse_line(line: bytes) -> Any:
    if len(line) > LINE_BYTES:
        raise NotJson(f"longer than {LINE_BYTES / 2**20:,.0f} MiB")
    return parse_json(line)


def _is_cut(text: bytes) -> bool:
    try:
        parse_json(text)
    except Unfinished:
        return True
    except NotJson:
        return False
    return False


def _integer(digits: str) -> int:
    if len(digits) > INTEGER_DIGITS:
        raise NotJson(f"a number of {len(digits):,} digits")
    return int(digits)


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank; of one that is too long the beginning."""
    with open_regular(path) as file:
        number = 0
        while line := file.readline(LINE_BYTES + 1):
            number += 1
            if line.strip():
                yield number, line
            while len(line) > LINE_BYTES and not line.endswith(b"\n"):
                line = file.readline(LINE_BYTES + 1)


@functools.cache
def _tell_torn(path: Path, number: int) -> None:
    """Once for each file."""
    console.note(f"{path}: line {number}, the last, breaks off (a process was stopped while it wrote); it is left out")


def _expected(what: str, value: Any, key: str) -> str:
    return f"{f'`{key}`: ' if key else ''}expected {what}, found {_in_words(type(value))}"


def _in_words(kind: Any) -> str:
    kinds = getattr(kind, "__args__", None) or (kind,)
    return " or ".join(_NAMES.get(each, each.__name__) for each in kinds)


_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}
