"""Files as people really have them: wrong encodings, cut lines, ragged tables, answers that read "NA"."""

from __future__ import annotations

import gzip
import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdora_fast.data.readers import read_file
from qdora_fast.errors import DataError

ROWS = [{"question": "Wo?", "answer": "Hier"}, {"question": "क्या?", "answer": "हाँ"}]
JSON_LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(ROWS)),
        ("a.json", json.dumps({"version": 1, "data": ROWS})),
        ("a.json", JSON_LINES),
        ("a.jsonl", JSON_LINES),
        ("a.JSONL", JSON_LINES.replace("\n", "\r\n")),
        ("a.jsonl", "\ufeff" + JSON_LINES.replace("\n", "\n\n")),
        ("a.csv", "question,answer\nWo?,Hier\n\nक्या?,हाँ\n"),
        ("a.tsv", "\ufeffquestion\tanswer\nWo?\tHier\nक्या?\tहाँ"),
        ("a.jsonl.gz", gzip.compress(JSON_LINES.encode())),
        ("a.csv.gz", gzip.compress("question,answer\nWo?,Hier\nक्या?,हाँ\n".encode())),
    ],
)
def test_every_text_format_gives_the_same_rows(name: str, content: str | bytes, tmp_path: Path) -> None:
    assert [raw.row for raw in read_file(write(tmp_path / name, content))] == ROWS


def test_parquet_and_arrow_give_the_same_rows(tmp_path: Path) -> None:
    from datasets import Dataset

    table = Dataset.from_list(ROWS)
    table.to_parquet(str(tmp_path / "a.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    for path in (tmp_path / "a.parquet", arrow):
        assert [raw.row for raw in read_file(path)] == ROWS
        assert [raw.place for raw in read_file(path)] == [f"{path} row 1", f"{path} row 2"]


def test_places_count_lines_of_the_file_and_rows_of_an_array(tmp_path: Path) -> None:
    lines = write(tmp_path / "a.jsonl", "\n" + JSON_LINES)
    assert [raw.place for raw in read_file(lines)] == [f"{lines}:2", f"{lines}:3"]
    table = write(tmp_path / "a.csv", 'q,a\n"one\ntwo",x\nthree,y\n')
    assert [raw.place for raw in read_file(table)] == [f"{table}:2", f"{table}:4"]
    array = write(tmp_path / "a.json", json.dumps(ROWS))
    assert [raw.place for raw in read_file(array)] == [f"{array} row 1", f"{array} row 2"]


def test_csv_values_stay_the_strings_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'q,a\nNamibia,NA\nnothing,null\nBond,007\nblank,\nlong,"' + "x" * 200_000 + '"\n')
    assert [raw.row["a"] for raw in read_file(path)] == ["NA", "null", "007", "", "x" * 200_000]


def test_all_broken_lines_are_named_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"a": 1}\n{"a": \n[1]\n{"a": 2,}\n')
    with pytest.raises(DataError) as caught:
        list(read_file(path))
    message = str(caught.value)
    assert all(f"{path}:{number}: " in message for number in (2, 3, 4))
    assert f"{path}:1:" not in message
    assert "3 unreadable line(s)" in message


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", '[{"a": 1}', "is the file complete?"),
        ("a.json", '[{"a": 1}, 5]', "1 rows are not objects (rows 2)"),
        ("a.json", "3", "expected an array of objects"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.jsonl", '{"a": "caf\xe9"}'.encode("latin-1"), "a.jsonl:1: not UTF-8 (byte 0xe9)"),
        ("a.jsonl", JSON_LINES.encode("utf-16"), "UTF-16 text; convert it: iconv"),
        ("a.jsonl", JSON_LINES.encode("utf-16-le"), "UTF-16 text"),
        ("a.csv", "q,a\n1,2\n3\n4,5,6\n", "a.csv:3: 1 values for 2 columns"),
        ("a.csv", 'q,a\n1,"open\n2,3\n', "a.csv:2: unexpected end of data"),
        ("a.csv", "q;a\n1;2\n", "one column only, but it holds ';'"),
        ("a.csv", "q,q\n1,2\n", "column 'q' stands twice"),
        ("a.jsonl.gz", gzip.compress(JSON_LINES.encode())[:-12], "damaged .gz file"),
        ("a.jsonl.gz", JSON_LINES, "damaged .gz file"),
        ("a.parquet", "no table", "not a readable Parquet file"),
        ("a.arrow", "no table", "not a readable Arrow stream"),
        ("a.xlsx", "", "cannot read .xlsx; supported are .json, .jsonl"),
        ("a", "", "a file without ending"),
        ("a.parquet.gz", "", "cannot read .gz"),
    ],
)
def test_damage_is_one_message_with_place_and_fix(
    name: str, content: str | bytes, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        list(read_file(write(tmp_path / name, content)))
    assert expected in str(caught.value)
    assert name in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(), json_values, max_size=4), max_size=5))
def test_json_lines_come_back_as_written(
    rows: list[dict[str, object]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    write(path, "".join(json.dumps(row) + "\n" for row in rows))
    assert [raw.row for raw in read_file(path)] == rows


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=60) | st.text("{}[]\":,ab\n\r\t;'1", max_size=60).map(str.encode))
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.tsv", "a.jsonl.gz", "a.parquet"])
def test_any_bytes_give_rows_or_a_data_error(
    name: str, content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.mktemp("any") / name, content)
    with suppress(DataError):  # any other exception is a crash
        assert all(isinstance(raw.row, dict) for raw in read_file(path))
