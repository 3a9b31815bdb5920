"""A file that is torn, of another shape, too large or no file at all is one error that names it and its fix."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from qdora_fast.system import json_files
from qdora_fast.system.errors import ConfigError, IntegrityError
from qdora_fast.system.json_files import append_line, end_last_line, read_lines, read_object
from qdora_fast.system.limits import INTEGER_DIGITS, JSON_DEPTH, JSON_FILE_BYTES

SHAPE = {"base": str, "revision": str | None, "losses?": [float], "task?": {"n": int}}
GOOD = {"base": "b", "revision": None, "losses": [0.5, float("inf")], "task": {"n": 3, "more": 1}, "other": []}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.json"


def _nested(levels: int) -> str:
    return '{"a":' + "[" * (levels - 1) + "]" * (levels - 1) + "}"


def test_an_object_of_the_wanted_shape_is_read_with_all_its_keys(path: Path) -> None:
    path.write_text("\ufeff" + json.dumps(GOOD))
    assert read_object(path, SHAPE) == GOOD
    path.write_text('{"base": "b", "revision": "r"}')
    assert read_object(path, SHAPE) == {"base": "b", "revision": "r"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ('{"base": "b", "rev', r"not valid JSON \(Unterminated string"),
        ("[]", "expected a JSON object, found a list"),
        ('{"revision": null}', "`base` is missing"),
        ('{"base": 3, "revision": null}', "`base`: expected a text, found a whole number"),
        ('{"base": "b", "revision": []}', "`revision`: expected a text or null, found a list"),
        ('{"base": "b", "revision": null, "task": {}}', r"`task\.n` is missing"),
        ('{"base": "b", "revision": null, "task": {"n": NaN}}', r"`task\.n`: expected a whole number, found a number"),
        ('{"base": "b", "revision": null, "losses": [0.5, "x"]}', "`losses`: expected a number, found a text"),
        (_nested(JSON_DEPTH + 1), f"nested more than {JSON_DEPTH} levels deep"),
        (_nested(100_000), f"nested more than {JSON_DEPTH} levels deep"),
        ('{"n": ' + "9" * (INTEGER_DIGITS + 1) + "}", f"a number of {INTEGER_DIGITS + 1} digits"),
        ('{"n": ' + "9" * 6000 + "}", "a number of 6,000 digits"),
        ("\udcff{}", "not UTF-8 text .byte 0xff."),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name_and_the_fix(path: Path, content: str, message: str) -> None:
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(IntegrityError, match=rf"model\.json: {message}.*; copy or download it again"):
        read_object(path, SHAPE)
    with pytest.raises(ConfigError, match=rf"{message}.*; make it again"):
        read_object(path, SHAPE, error=ConfigError, fix="make it again")


def test_the_limits_themselves_are_allowed(path: Path) -> None:
    number = int("9" * INTEGER_DIGITS)
    path.write_text(_nested(JSON_DEPTH)[:-1] + f', "n": {number}}}')
    assert float(read_object(path)["n"]) == float(number)


def test_what_is_no_regular_file_or_too_large_is_refused_and_never_waited_for(path: Path) -> None:
    with pytest.raises(IntegrityError, match="No such file"):
        read_object(path)
    os.mkfifo(path)
    for read in (read_object, read_lines):
        with pytest.raises(IntegrityError, match="not a regular file"):
            read(path)
        with pytest.raises(IntegrityError, match="not a regular file"):
            read(Path("/dev/zero"))
        with pytest.raises(IntegrityError, match="not a regular file"):
            read(path.parent)
    path.unlink()
    path.touch()
    os.truncate(path, JSON_FILE_BYTES + 1)
    with pytest.raises(IntegrityError, match="larger than 64 MiB"):
        read_object(path)


def _written(path: Path, *lines: str) -> Path:
    path.write_text("".join(lines))
    return path


def test_a_torn_last_line_is_left_out_and_the_user_is_told(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_lines(_written(path, '{"step": 1}\n', "\n", '{"step": 2}\n', '{"st')) == [{"step": 1}, {"step": 2}]
    assert f"{path}: line 4, the last, breaks off" in capsys.readouterr().err
    path.write_bytes('{"step": 1}\n{"é": "é'.encode()[:-1])
    assert read_lines(path) == [{"step": 1}]
    assert read_lines(_written(path, '{"step": 1}')) == [{"step": 1}], "a last line may lack its line break"


@pytest.mark.parametrize(
    ("line", "message"),
    [('{"st', "not valid JSON"), ("[]", "expected a JSON object"), ("{}", "`step` is missing"), (_nested(999), "deep")],
)
def test_any_other_bad_line_is_an_error_with_its_number(path: Path, line: str, message: str) -> None:
    shape: dict[str, Any] = {"step": int}
    _written(path, '{"step": 1}\n', line + "\n", '{"step": 3}\n')
    with pytest.raises(IntegrityError, match=rf"model\.json, line 2: .*{message}.*; copy or download it again"):
        read_lines(path, shape)
    assert read_lines(path, shape, skip_bad=True) == [{"step": 1}, {"step": 3}]


def test_a_line_that_is_too_long_is_not_held_in_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "LINE_BYTES", 2**20)
    _written(path, '{"step": 1}\n', json.dumps({"x": "y" * 3 * 2**20}) + "\n", '{"step": 3}\n')
    with pytest.raises(IntegrityError, match="line 2: longer than 1 MiB"):
        read_lines(path)
    assert read_lines(path, skip_bad=True) == [{"step": 1}, {"step": 3}]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", [{"step": 9}]),
        ('{"step": 1}\n', [{"step": 1}, {"step": 9}]),
        ('{"step": 1}', [{"step": 1}, {"step": 9}]),
        ('{"step": 1}\n{"step": 2, "lo', [{"step": 1}, {"step": 9}]),
        ('{"st', [{"step": 9}]),
    ],
)
def test_what_is_appended_stands_on_a_line_of_its_own(path: Path, before: str, after: list[Any]) -> None:
    path.write_text(before)
    append_line(path, {"step": 9})
    assert read_lines(path) == after


def test_nothing_is_made_where_there_is_no_file_to_end(path: Path) -> None:
    end_last_line(path)
    assert not path.exists()
