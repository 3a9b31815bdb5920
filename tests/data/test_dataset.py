from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from qdora_fast.config import DataSettings
from qdora_fast.data import Prepared, prepare
from qdora_fast.errors import DataError

GOOD = [{"instruction": f"Name number {i}", "input": "", "output": f"It is {i}"} for i in range(40)]


def prepared(path: Path, rows: list[Any], seed: int = 42, **settings: Any) -> Prepared:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepare(DataSettings(path=str(path), **settings), seed=seed)


def test_rows_are_split_and_say_where_they_come_from(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    data = prepared(path, GOOD)
    assert (len(data.train), len(data.held_out)) == (36, 4)
    first = data.train[0]
    assert first["meta"]["source"] == f"{path}:{first['meta']['row']}"
    assert first["messages"][1] == {"role": "assistant", "content": f"It is {first['meta']['row'] - 1}"}
    assert first["tools"] is None
    assert len(first["meta"]["hash"]) == 64


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    bad = [{"instruction": "x", "output": ""}, {"instruction": "y", "output": " "}, {"instruction": "", "output": "z"}]
    data = prepared(path, [*GOOD, *bad, GOOD[0] | {"instruction": "q", "input": "n/a"}], format="alpaca")
    report = data.report
    assert report.rows_in == 44
    assert report.kept == 41 == report.train + report.held_out
    assert [(each.reason, each.count) for each in report.dropped] == [("empty_answer", 2), ("missing_field", 1)]
    assert report.dropped[0].examples == (f"{path}:41, output", f"{path}:42, output")
    assert report.repairs == {"placeholder_input": 1}
    assert report.as_json() == {
        "rows_in": 44,
        "kept": 41,
        "dropped": {"empty_answer": 2, "missing_field": 1},
        "train": report.train,
        "held_out": report.held_out,
        "hash": report.hash,
    }


def test_the_same_rows_in_any_order_are_the_same_data(tmp_path: Path) -> None:
    one = prepared(tmp_path / "one.jsonl", GOOD)
    other = prepared(tmp_path / "other.jsonl", random.Random(1).sample(GOOD, len(GOOD)))
    assert one.report.hash == other.report.hash
    assert {row["meta"]["hash"] for row in one.held_out} == {row["meta"]["hash"] for row in other.held_out}


def test_one_changed_letter_or_another_split_is_other_data(tmp_path: Path) -> None:
    reference = prepared(tmp_path / "rows.jsonl", GOOD).report.hash
    assert prepared(tmp_path / "rows.jsonl", [*GOOD[1:], GOOD[0] | {"output": "It is 0."}]).report.hash != reference
    assert prepared(tmp_path / "rows.jsonl", GOOD, seed=7).report.hash != reference


def test_mostly_malformed_data_is_refused_with_reasons_and_places(tmp_path: Path) -> None:
    rows = GOOD[:10] + [{"instruction": "x", "output": ""}] * 11
    with pytest.raises(DataError) as caught:
        prepared(tmp_path / "rows.jsonl", rows)
    message = str(caught.value)
    assert "11 of 21 rows cannot be used as `alpaca`" in message
    assert "11 x empty_answer" in message
    assert "rows.jsonl:11" in message


def test_an_answer_that_reads_na_survives_csv(tmp_path: Path) -> None:
    path = tmp_path / "codes.csv"
    path.write_text("question,answer\nCode of Namibia?,NA\n" + "".join(f"Code {i}?,{i:03}\n" for i in range(11)))
    data = prepare(DataSettings(path=str(path), held_out=0), seed=1)
    assert [row["messages"][-1]["content"] for row in data.train][:3] == ["NA", "000", "001"]
    assert data.held_out == []


def test_plain_text_rows_have_no_messages(tmp_path: Path) -> None:
    data = prepared(tmp_path / "rows.jsonl", [{"text": f"story {i}"} for i in range(20)])
    assert data.report.format.name == "text"
    assert all(row["messages"] == [] and row["text"].startswith("story") for row in data.train + data.held_out)


def test_the_embedded_rows_are_usable() -> None:
    data = prepare(DataSettings(path="demo"), seed=42)
    assert data.report.dropped == ()
    assert data.report.format.name == "alpaca"
    assert data.report.held_out == round(0.1 * data.report.rows_in)


def test_max_rows_limits_what_is_read(tmp_path: Path) -> None:
    assert prepared(tmp_path / "rows.jsonl", GOOD, max_rows=12).report.rows_in == 12
