from __future__ import annotations

from typing import Any

import pytest

from qdora_fast.data.read.ids import IdCheck
from qdora_fast.data.read.readers import RawRow


def checked(*rows: dict[str, Any]) -> IdCheck:
    check = IdCheck()
    for number, row in enumerate(rows, 1):
        check.see(RawRow(row, f"rows.jsonl:{number}"))
    return check


def test_rows_with_the_id_of_an_earlier_one_are_counted_with_the_first_places() -> None:
    check = checked(*({"id": number % 3} for number in range(10)))
    assert (check.column, check.count) == ("id", 7)
    assert check.examples == [f"rows.jsonl:{number} has the id of an earlier row" for number in (4, 5, 6)]


@pytest.mark.parametrize("column", ["id", "_id", "uuid", "row_id"])
def test_the_first_row_decides_which_column_holds_the_id(column: str) -> None:
    check = checked({"text": "x", column: "a"}, {column: "a", "id": "z"}, {"text": "no id"})
    assert check.column == column
    assert check.count == (0 if column == "id" else 1)


def test_rows_without_ids_have_none_twice() -> None:
    assert (checked({"text": "x"}, {"id": 1}, {"id": 1}).column, checked().column) == (None, None)
    blanks = checked({"id": None}, {"id": None}, {"id": " "}, {"id": ""}, {"id": float("nan")}, {"id": float("nan")})
    assert (blanks.column, blanks.count) == ("id", 0)


def test_any_value_can_be_an_id() -> None:
    values: list[Any] = [
        1,
        "1",
        {"$oid": "a"},
        {"$oid": "a"},
        [1],
        "half a pair \ud800",
        "half a pair \ud800",
        0,
        False,
    ]
    assert checked(*({"id": value} for value in values)).count == 3  # a number and its digits are one id
