"""Keys that stand twice, and files that are one object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qdora_fast.data.read import readers
from qdora_fast.data.read.readers import BadRow, RawRow, read_file
from qdora_fast.system.errors import DataError

ROWS = [{"instruction": f"Say {number}.", "output": str(number)} for number in range(3)]
GOOD = json.dumps(ROWS[0])
DOUBLED = '{"instruction": "x", "output": "first", "output": "second"}'
DEEP = '{"messages": [{"role": "user", "content": "x", "content": "y"}]}'
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}


def rows_in(path: Path, content: str) -> list[RawRow | BadRow]:
    path.write_text(content)
    return list(read_file(path))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("wrong", [DOUBLED, DEEP])
@pytest.mark.parametrize("form", ["lines", "array", "data"])
def test_a_key_that_stands_twice_costs_its_row(
    form: str, wrong: str, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(readers, "LARGE_JSON", 10)
    text = {"lines": f"{GOOD}\n{wrong}\n{GOOD}\n"}.get(form, f"[{GOOD}, {wrong}, {GOOD}]")
    path = tmp_path / ("a.jsonl" if form == "lines" else "a.json")
    first, second, third = rows_in(path, f'{{"data": {text}}}' if form == "data" else text)
    assert isinstance(second, BadRow)
    key = "content" if wrong == DEEP else "output"
    assert second.detail.startswith(f"key '{key}' stands twice")
    assert second.source == (f"{path}:2" if form == "lines" else f"{path} row 2")
    assert all(isinstance(row, RawRow) and row.row == ROWS[0] for row in (first, third))


def test_a_single_object_with_a_doubled_key_is_one_bad_row(tmp_path: Path) -> None:
    (row,) = rows_in(tmp_path / "a.json", DOUBLED)
    assert isinstance(row, BadRow)


@pytest.mark.parametrize(
    "stored",
    [
        COLUMNS,
        {name: {str(number): value for number, value in enumerate(column)} for name, column in COLUMNS.items()},
        {str(number): row for number, row in enumerate(ROWS)},
        {"columns": list(COLUMNS), "index": [0, 1, 2], "data": [list(row.values()) for row in ROWS]},
        {"schema": {"fields": []}, "data": ROWS},
    ],
    ids=["columns", "pandas columns", "pandas index", "pandas split", "pandas table"],
)
def test_a_file_of_columns_and_the_tables_of_pandas_are_rows(stored: dict[str, Any], tmp_path: Path) -> None:
    assert [row.row for row in rows_in(tmp_path / "a.json", json.dumps(stored)) if isinstance(row, RawRow)] == ROWS


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user"}, {"role": "assistant"}], "tools": [{"name": "a"}, {"name": "b"}]},
        {"instruction": "x", "output": "y"},
        {"instruction": "x", "output": ["y"]},
        {"meta": {"a": 1}},
    ],
)
def test_an_object_that_is_one_row_stays_one(row: dict[str, Any], tmp_path: Path) -> None:
    (read,) = rows_in(tmp_path / "a.json", json.dumps(row))
    assert isinstance(read, RawRow)
    assert read.row == row


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (COLUMNS | {"output": ["x"]}, r"columns of different lengths \(instruction has 3, output has 1\)"),
        ({"a": ROWS[0], "b": ROWS[1]}, "an object of objects"),
    ],
)
def test_an_object_that_may_be_rows_or_columns_is_refused(stored: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        rows_in(tmp_path / "a.json", json.dumps(stored))
