"""The user's own function: given copies, and each of its mistakes told where it is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qdora_fast.config.own_code import allow_own_code
from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.read.custom import Formatter, apply, formatter_source, load_formatter
from qdora_fast.system.errors import ConfigError

GOOD = """
LIMIT = 3

def to_alpaca(row):
    if row.get("skip"):
        return None
    row["tags"].append("changed")
    return {"instruction": row["q"], "output": row["a"].strip()}
"""
DATACLASS = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Pair:
    text: str

def f(row):
    return vars(Pair("x"))
"""


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def loaded(code: str, function: str, name: str = "rows.py") -> Formatter:
    """A function of a file with this code, which the user has let in."""
    Path(name).write_text(code)
    with allow_own_code([name]):
        return load_formatter(f"{name}:{function}")


def test_the_search_path_stays_as_it_is_and_nothing_is_left_beside_the_file() -> None:
    before = list(sys.path), sys.dont_write_bytecode
    formatter = loaded(GOOD, "to_alpaca")
    assert formatter({"q": "x", "a": " y ", "tags": []}) == {"instruction": "x", "output": "y"}
    assert (list(sys.path), sys.dont_write_bytecode) == before
    assert [path.name for path in Path.cwd().iterdir()] == ["rows.py"]


def test_an_edited_file_is_run_anew() -> None:
    for version in ("one", "two", "one"):  # of the same length, within the same second
        assert loaded(f"def f(row):\n    return {{'text': {version!r}}}\n", "f")({}) == {"text": version}
        assert version.encode() in formatter_source("rows.py:f")


def test_what_a_file_may_hold() -> None:
    assert loaded(DATACLASS, "f")({}) == {"text": "x"}
    assert loaded("# -*- coding: latin-1 -*-\nf = lambda row: row", "f")({"a": 1}) == {"a": 1}


@pytest.mark.parametrize(
    ("code", "function", "expected"),
    [
        (GOOD, "to_chatml", "has no function 'to_chatml'; it has to_alpaca"),
        ("x = 1", "f", "it has none at all"),
        (GOOD, "LIMIT", "LIMIT is no function that is defined in this file; it has to_alpaca"),
        ("from subprocess import run as f", "f", "f is no function that is defined in this file; it has none at all"),
        ("class f:\n    pass", "f", "f is no function that is defined in this file"),
        ("import json\n\nraise ValueError('no file')", "f", "rows.py failed: ValueError: no file (rows.py:3)"),
        ("def f(row):\n    return (", "f", "failed: SyntaxError: '(' was never closed (rows.py:2)"),
        ("f = '\0'", "f", "rows.py failed: "),
        (
            "\nimport nowhere_to_be_found",
            "f",
            "failed: ModuleNotFoundError: No module named 'nowhere_to_be_found' (rows.py:2); code that a setting",
        ),
        ("import json\njson.loads('{')", "f", "(rows.py:2)"),
        ("import sys\nsys.exit('usage: ...')", "f", "failed: SystemExit: usage: ... (rows.py:2)"),
    ],
)
def test_what_keeps_it_from_being_used_is_said_with_its_line(code: str, function: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(code, function)
    assert str(caught.value).startswith(f"data.formatter: {'running ' if 'failed' in expected else ''}")
    assert expected in str(caught.value)


def test_a_module_of_the_users_own_is_not_searched_for() -> None:
    Path("helper.py").write_text("open('MARK', 'w')")
    with pytest.raises(ConfigError, match="No module named 'helper'"):
        loaded("import helper", "f")
    assert not Path("MARK").exists()


def test_a_file_that_is_missing_names_the_nearest() -> None:
    Path("my_own_rows.py").write_text(GOOD)
    for ask in (load_formatter, formatter_source):
        with pytest.raises(ConfigError, match=r"did you mean my_own_rows\.py?"):
            ask("my_own_row.py:to_alpaca")


def test_the_function_gets_a_copy_and_none_leaves_the_row_out() -> None:
    formatter = loaded(GOOD, "to_alpaca")
    row = {"q": "x", "a": "y", "tags": ["old"]}
    assert apply(formatter, row) == {"instruction": "x", "output": "y"}
    assert row == {"q": "x", "a": "y", "tags": ["old"]}
    with pytest.raises(RejectedRow) as caught:
        apply(formatter, {"skip": True})
    assert (caught.value.reason, caught.value.detail) == ("left_out", "")


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ("return row['missing']", "KeyError: 'missing' (rows.py:2)"),
        (
            "return helper(row)\ndef helper(row):\n    raise ValueError('bad\\nsecond line')",
            "ValueError: bad (rows.py:4)",
        ),
        ("import json; json.loads('{')", "(rows.py:2)"),
        ("return f(row)", "RecursionError: maximum recursion depth exceeded (rows.py:2)"),
        ("raise Exception('half a pair \\ud800')", "Exception: half a pair \\ud800 (rows.py:2)"),
        ("assert False", "AssertionError (rows.py:2)"),
        ("return [row]", "it returned a value of type list"),
        ("return 'text'", "it returned a value of type str"),
        ("yield row", "it returned a value of type generator"),
    ],
)
def test_a_mistake_in_it_costs_the_row_and_names_the_line(body: str, detail: str) -> None:
    formatter = loaded(f"def f(row):\n    {body}\n", "f")
    with pytest.raises(RejectedRow) as caught:
        apply(formatter, {"a": 1})
    assert caught.value.reason == "formatter_failed"
    assert detail in caught.value.detail
    caught.value.detail.encode()


def test_the_source_of_a_file_is_read_without_running_it() -> None:
    Path("rows.py").write_text("raise SystemExit('ran')")
    assert formatter_source("rows.py:f") == b"raise SystemExit('ran')"
