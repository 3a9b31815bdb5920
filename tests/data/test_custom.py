"""The user's own function: found, given copies, and each of its mistakes told where it is."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import pytest

from qdora_fast.data.custom import apply, formatter_source, load_formatter
from qdora_fast.data.rejects import RejectedRow
from qdora_fast.errors import ConfigError

GOOD = """
LIMIT = 3

def to_alpaca(row):
    if row.get("skip"):
        return None
    row["tags"].append("changed")
    return {"instruction": row["q"], "output": row["a"].strip()}
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A name for a module that no other test has imported; the working directory is where it will be looked for."""
    monkeypatch.chdir(tmp_path)
    return f"rows_{abs(hash(request.node.name))}"


def write(module: str, code: str) -> None:
    Path(f"{module}.py").write_text(code)


def test_the_working_directory_is_searched_and_left_as_it_was(module: str) -> None:
    write(module, GOOD)
    before = list(sys.path), sys.dont_write_bytecode
    formatter = load_formatter(f"{module}:to_alpaca")
    assert formatter({"q": "x", "a": " y ", "tags": []}) == {"instruction": "x", "output": "y"}
    assert (list(sys.path), sys.dont_write_bytecode) == before
    assert [path.name for path in Path.cwd().iterdir()] == [f"{module}.py"]


def test_a_module_in_a_package_is_found(module: str) -> None:
    Path(module).mkdir()
    Path(module, "rows.py").write_text(GOOD)
    assert load_formatter(f"{module}.rows:to_alpaca").__name__ == "to_alpaca"
    assert formatter_source(f"{module}.rows:to_alpaca") == GOOD.encode()


def test_an_edited_module_is_imported_anew(module: str) -> None:
    for version in ("one", "two"):  # of the same length, within the same second
        write(module, f"def f(row):\n    return {{'text': {version!r}}}\n")
        assert load_formatter(f"{module}:f")({}) == {"text": version}
        assert version.encode() in formatter_source(f"{module}:f")


@pytest.mark.parametrize(
    ("code", "function", "expected"),
    [
        (None, "f", "there is no module {module}: neither {module}.py in "),
        (GOOD, "to_chatml", "has no function 'to_chatml'; it has to_alpaca"),
        ("x = 1", "f", "it has none at all"),
        (GOOD, "LIMIT", "LIMIT is of type int, not a function"),
        (
            "import json\n\nraise ValueError('no file')",
            "f",
            "importing {module} failed: ValueError: no file ({module}.py:3)",
        ),
        (
            "def f(row):\n    return (",
            "f",
            "failed: SyntaxError: '(' was never closed ({module}.py:2)",
        ),
        (
            "\nimport nowhere_to_be_found",
            "f",
            "failed: ModuleNotFoundError: No module named 'nowhere_to_be_found' ({module}.py:2)",
        ),
        ("import json\njson.loads('{')", "f", "({module}.py:2)"),
        ("import sys\nsys.exit('usage: ...')", "f", "failed: SystemExit: usage: ... ({module}.py:2)"),
    ],
)
def test_what_keeps_it_from_being_imported_is_said_with_its_line(
    code: str | None, function: str, expected: str, module: str
) -> None:
    if code is not None:
        write(module, code)
    with pytest.raises(ConfigError) as caught:
        load_formatter(f"{module}:{function}")
    assert expected.format(module=module) in str(caught.value)


def test_a_module_that_is_missing_names_the_nearest_file(module: str) -> None:
    write("my_own_rows", GOOD)
    for ask in (load_formatter, formatter_source):
        with pytest.raises(ConfigError, match="did you mean my_own_rows?"):
            ask("my_own_row:to_alpaca")


def test_the_function_gets_a_copy_and_none_leaves_the_row_out(module: str) -> None:
    write(module, GOOD)
    formatter = load_formatter(f"{module}:to_alpaca")
    row = {"q": "x", "a": "y", "tags": ["old"]}
    assert apply(formatter, row) == {"instruction": "x", "output": "y"}
    assert row == {"q": "x", "a": "y", "tags": ["old"]}
    with pytest.raises(RejectedRow) as caught:
        apply(formatter, {"skip": True})
    assert (caught.value.reason, caught.value.detail) == ("left_out", "")


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ("return row['missing']", "KeyError: 'missing' ({module}.py:2)"),
        (
            "return helper(row)\ndef helper(row):\n    raise ValueError('bad\\nsecond line')",
            "ValueError: bad ({module}.py:4)",
        ),
        ("import json; json.loads('{')", "({module}.py:2)"),
        ("return f(row)", "RecursionError: maximum recursion depth exceeded ({module}.py:2)"),
        ("raise Exception('half a pair \\ud800')", "Exception: half a pair \\ud800 ({module}.py:2)"),
        ("assert False", "AssertionError ({module}.py:2)"),
        ("return [row]", "it returned a value of type list"),
        ("return 'text'", "it returned a value of type str"),
        ("yield row", "it returned a value of type generator"),
    ],
)
def test_a_mistake_in_it_costs_the_row_and_names_the_line(body: str, detail: str, module: str) -> None:
    write(module, f"def f(row):\n    {body}\n")
    with pytest.raises(RejectedRow) as caught:
        apply(load_formatter(f"{module}:f"), {"a": 1})
    assert caught.value.reason == "formatter_failed"
    assert detail.format(module=module) in caught.value.detail
    caught.value.detail.encode()


def test_what_is_no_plain_function_may_be_used_as_well() -> None:
    def keep(row: dict[str, Any], column: str) -> dict[str, Any]:
        return {"text": row[column]}

    assert apply(functools.partial(keep, column="a"), {"a": "x"}) == {"text": "x"}
    with pytest.raises(RejectedRow, match="KeyError: 'a'"):
        apply(functools.partial(keep, column="a"), {})
    with pytest.raises(RejectedRow, match="TypeError"):
        apply(load_formatter("json:loads"), {})


def test_the_source_of_a_module_is_found_without_running_it(module: str) -> None:
    write(module, "raise SystemExit('ran')")
    assert formatter_source(f"{module}:f") == b"raise SystemExit('ran')"
    assert formatter_source("sys:intern") == b""
