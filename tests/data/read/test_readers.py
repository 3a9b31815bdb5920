"""Files as people really have them: wrong encodings, cut lines, ragged tables, answers that read "NA"."""

from __future__ import annotations

import gzip
import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from backports import zstd
from breadth import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from qdora_fast.data.read import compression, readers
from qdora_fast.data.read.readers import BadRow, RawRow, bad_rows_error, is_supported, read_file
from qdora_fast.system.errors import DataError

ROWS = [{"question": "Wo?", "answer": "Hier"}, {"question": "क्या?", "answer": "हाँ"}]
JSON_LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def packed(text: str) -> bytes:
    """A .gz without its time, so that a test is called the same in every process."""
    return gzip.compress(text.encode(), mtime=0)


def good(path: Path) -> list[dict[str, object]]:
    """The rows of a file that has no bad ones."""
    rows = list(read_file(path))
    assert all(isinstance(row, RawRow) for row in rows), rows
    return [row.row for row in rows if isinstance(row, RawRow)]


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
        ("a.jsonl", "\ufeff" + JSON_LINES + "\ufeff" + "\n"),
        ("a.json", "\ufeff" + json.dumps(ROWS, indent=1).replace("\n", "\r\n")),
        ("a.csv", "\ufeffquestion,answer\r\nWo?,Hier\r\n  \r\nक्या?,हाँ\r\n\r\n"),
        ("a.jsonl.gz", packed(JSON_LINES)),
        ("a.jsonl.GZ", packed(JSON_LINES[:9]) + packed(JSON_LINES[9:])),
        ("a.jsonl.zst", zstd.compress(JSON_LINES.encode())),
        ("a.json.zst", zstd.compress(json.dumps(ROWS).encode())),
        ("a.tsv.zst", zstd.compress("question\tanswer\nWo?\tHier\nक्या?\tहाँ".encode())),
        ("a.csv.gz", packed("question,answer\nWo?,Hier\nक्या?,हाँ\n")),
    ],
)
def test_every_text_format_gives_the_same_rows(name: str, content: str | bytes, tmp_path: Path) -> None:
    assert good(write(tmp_path / name, content)) == ROWS


def test_a_mark_between_joined_files_is_no_part_of_the_row(tmp_path: Path) -> None:
    first, second = JSON_LINES.splitlines(keepends=True)
    assert good(write(tmp_path / "a.jsonl", f"\ufeff{first}\ufeff{second}")) == ROWS


def test_places_count_lines_of_the_file_and_rows_of_an_array(tmp_path: Path) -> None:
    lines = write(tmp_path / "a.jsonl", "\n" + JSON_LINES)
    assert [raw.source for raw in read_file(lines)] == [f"{lines}:2", f"{lines}:3"]
    table = write(tmp_path / "a.csv", 'q,a\n"one\ntwo",x\nthree,y\n')
    assert [raw.source for raw in read_file(table)] == [f"{table}:2", f"{table}:4"]
    array = write(tmp_path / "a.json", json.dumps(ROWS))
    assert [raw.source for raw in read_file(array)] == [f"{array} row 1", f"{array} row 2"]


def test_csv_values_stay_the_strings_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'q,a\nNamibia,NA\nnothing,null\nBond,007\nblank,\nlong,"' + "x" * 200_000 + '"\n')
    assert [row["a"] for row in good(path)] == ["NA", "null", "007", "", "x" * 200_000]


def test_bad_lines_stand_between_the_good_ones_with_their_places(tmp_path: Path) -> None:
    lines = [b'{"a": 1}', b'{"a": ', b"[1]", b'{"a": "caf\xe9"}', b'{"a" 2}', b"", b'{"a": 3}', b"\0", b"null"]
    path = write(tmp_path / "a.jsonl", b"\n".join(lines))
    assert list(read_file(path)) == [
        RawRow({"a": 1}, f"{path}:1"),
        BadRow("bad_json", "broken JSON at character 6: Expecting value", f"{path}:2"),
        BadRow("not_an_object", "list instead of an object {...}", f"{path}:3"),
        BadRow("broken_unicode", "not UTF-8 (byte 0xe9), probably Latin-1 or Windows-1252", f"{path}:4"),
        BadRow("bad_json", "broken JSON at character 6: Expecting ':' delimiter", f"{path}:5"),
        RawRow({"a": 3}, f"{path}:7"),
        BadRow("bad_json", "broken JSON at character 1: Expecting value", f"{path}:8"),
        BadRow("not_an_object", "NoneType instead of an object {...}", f"{path}:9"),
    ]


def test_bad_rows_of_a_table_cost_themselves_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'q,a\n1,2\n3\n"caf\xe9\nau lait",5\n6,7,8\n9,10\n')
    assert list(read_file(path)) == [
        RawRow({"q": "1", "a": "2"}, f"{path}:2"),
        BadRow("wrong_columns", "1 values for 2 columns", f"{path}:3"),
        BadRow("broken_unicode", "not UTF-8 (byte 0xe9), probably Latin-1 or Windows-1252", f"{path}:4"),
        BadRow("wrong_columns", "3 values for 2 columns", f"{path}:6"),
        RawRow({"q": "9", "a": "10"}, f"{path}:7"),
    ]


def test_elements_of_an_array_that_are_no_objects_are_bad_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[{"a": 1}, 5, {"a": 2}]')
    rows = list(read_file(path))
    assert rows[1] == BadRow("not_an_object", "int instead of an object {...}", f"{path} row 2")
    assert [type(row) for row in rows] == [RawRow, BadRow, RawRow]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("depth", [101, 400, 10_000])
def test_a_row_nested_deeper_than_any_later_stage_could_walk_is_bad(name: str, depth: int, tmp_path: Path) -> None:
    at_the_limit, beyond = ('{"a": ' + "[" * levels + "]" * levels + "}" for levels in (99, depth))
    lines = [at_the_limit, beyond] if name.endswith("l") else [f"[{at_the_limit},", f"{beyond}]"]
    path = write(tmp_path / name, "\n".join(lines))
    if name == "a.json" and depth == 10_000:
        with pytest.raises(DataError, match="nested too deeply"):
            list(read_file(path))
        return
    first, second = read_file(path)
    assert isinstance(first, RawRow)
    assert isinstance(second, BadRow)
    assert "nested" in second.detail


def test_the_error_for_bad_rows_names_the_first_of_them_and_the_fix() -> None:
    bad = [BadRow("bad_json", f"fault {number}", f"a.jsonl:{number}") for number in range(1, 9)]
    message = str(bad_rows_error(bad, 8))
    assert message.startswith("8 row(s) cannot be read:\n  a.jsonl:1: fault 1\n")
    assert "a.jsonl:5: fault 5\n  and 3 more\n" in message
    assert "a.jsonl:6" not in message
    assert "each line must hold one JSON object" in message
    assert "data.on_bad_row: skip" in message
    only = str(bad_rows_error([BadRow("left_out", "", "a.jsonl:1")], 1))
    assert "a.jsonl:1: data.formatter returned None" in only
    assert "more" not in only


def test_a_large_json_file_is_read_in_pieces_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"a": number, "b": "\ud800 é" if number % 3 else 10**30, "c": [float("inf")]} for number in range(50)]
    contents = {
        "array.json": json.dumps(rows),
        "data.json": json.dumps({"version": {"data": [1]}, "data": rows, "end": None}, indent=1),
        "lines.json": "".join(json.dumps(row) + "\n" for row in rows),
        "mixed.json": json.dumps([*rows, 5]),
    }
    paths = [write(tmp_path / name, content) for name, content in contents.items()]
    paths.append(write(tmp_path / "array.json.gz", gzip.compress(contents["array.json"].encode())))
    small = [list(read_file(path)) for path in paths]
    monkeypatch.setattr(readers, "LARGE_JSON", 100)
    assert [list(read_file(path)) for path in paths] == small
    assert all(len(each) >= len(rows) for each in small)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "[" + '{"a": 1},' * 40 + '{"a": "open',
            "after row 40: Unterminated string starting at; is the file complete?",
        ),
        ('{"data": [' + '{"a": 1},' * 40 + "5]", "after row 41: broken JSON: ',' expected, found 'the end'"),
        ("[" + '{"a": 1},' * 40 + "5] []", "after row 41: broken JSON: '[' after the end of the array"),
        ("[" + '{"a": 1},' * 40 + '{"a": }]', "after row 40: Expecting value"),
        ("[" + '{"a": 1},' * 40, "after row 40: Expecting value"),
        ("[" + '{"a": 1},' * 40 + "]", "after row 40: broken JSON: a comma before the closing bracket"),
        (
            '{"rows": [' + '{"a": 1},' * 40 + "{}]}",
            'after row 0: broken JSON: neither an array [{...}, ...] nor {"data"',
        ),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_broken_large_json_file_says_how_far_it_could_be_read(
    content: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "LARGE_JSON", 100)
    with pytest.raises(DataError) as caught:
        list(read_file(write(tmp_path / "a.json", content)))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", '[{"a": 1}', "is the file complete?"),
        ("a.json", "3", "expected an array of objects"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", '[\n{"a": "caf\xe9"}]'.encode("latin-1"), "a.json:2: not UTF-8 (byte 0xe9)"),
        ("a.csv", "caf\xe9,a\n1,2\n".encode("latin-1"), "a.csv:1: not UTF-8 (byte 0xe9)"),
        ("a.json", json.dumps(ROWS).encode("utf-16-be"), "UTF-16 text; convert it: iconv"),
        ("a.jsonl", JSON_LINES.encode("utf-16"), "UTF-16 text; convert it: iconv"),
        ("a.jsonl", JSON_LINES.encode("utf-16-le"), "UTF-16 text"),
        ("a.csv", 'q,a\n1,"open\n2,3\n', "a.csv:2: unexpected end of data"),
        ("a.csv", "q;a\n1;2\n", "one column only, but it holds ';'"),
        ("a.csv", "q,q\n1,2\n", "column 'q' stands twice"),
        ("a.jsonl.gz", packed(JSON_LINES)[:-12], "damaged .gz file"),
        (
            "a.jsonl.zst",
            zstd.compress(JSON_LINES.encode())[:-5],
            "damaged .zst file (Compressed file ended before",
        ),
        (
            "a.csv.zst",
            "q,a\n1,2\n",
            "Unknown frame descriptor); 0 rows",
        ),
        ("a.jsonl.gz", JSON_LINES, "damaged .gz file"),
        ("a.parquet", "no table", "not a readable Parquet file"),
        ("a.arrow", "no table", "not a readable Arrow stream"),
        ("a.xlsx", "", "cannot read .xlsx; supported are .json, .jsonl"),
        ("a", "", "a file without ending"),
        ("a.parquet.gz", "", "cannot read .gz"),
        ("a.zst", "", "cannot read .zst"),
        ("a.pkl", "", "can run code that they hold, and nothing is executed from a data set; save the rows as .jsonl"),
        ("a.pt", "", "nothing is executed"),
        ("a.py", "", "nothing is executed"),
    ],
)
def test_damage_is_one_message_with_place_and_fix(
    name: str, content: str | bytes, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        list(read_file(write(tmp_path / name, content)))
    assert expected in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_cut_archive_says_how_many_rows_came_before(ending: str, tmp_path: Path) -> None:
    pack = gzip.compress if ending == ".gz" else zstd.compress
    text = "".join(json.dumps({"a": number, "hash": hash((number, "x"))}) + "\n" for number in range(30_000))
    packed = pack(text.encode())
    seen = []
    with pytest.raises(DataError) as caught:
        seen.extend(read_file(write(tmp_path / f"a.jsonl{ending}", packed[: len(packed) // 2])))
    assert len(seen) == 0 or seen[-1].source.startswith(str(tmp_path))
    count = int(str(caught.value).split("; ")[1].split()[0])
    assert 0 < count < 30_000


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_a_line_that_is_too_long_is_one_bad_row(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (compression, readers):
        monkeypatch.setattr(module, "LINE_BYTES", 2**20)
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress}[ending]
    text = '{"a": 1}\n{"a": "' + "x" * 3 * 2**20 + '"}\n{"a": 3}\n'
    path = write(tmp_path / f"a.jsonl{ending}", pack(text.encode()))
    assert list(read_file(path)) == [
        RawRow({"a": 1}, f"{path}:1"),
        BadRow("line_too_long", "longer than 1 MiB", f"{path}:2"),
        RawRow({"a": 3}, f"{path}:3"),
    ]
    with pytest.raises(DataError, match=r"a\.csv.*:2: a line longer than 1 MiB"):
        list(read_file(write(tmp_path / f"a.csv{ending}", pack(text.encode()))))


def test_a_table_of_more_columns_than_any_has_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ",".join(f"c{number}" for number in range(200_000)) + "\n")
    with pytest.raises(DataError, match=r"a\.csv:1: 200,000 columns"):
        list(read_file(path))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read \(a folder, a pipe or a device"):
        list(read_file(tmp_path / "a.jsonl"))


def test_a_file_that_may_not_be_read_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl: cannot be read \(No such file or directory\)"):
        list(read_file(tmp_path / "gone.jsonl"))


def test_packed_text_is_supported_and_packed_tables_are_not() -> None:
    assert all(is_supported(Path(name)) for name in ("a.jsonl.zst", "a.CSV.GZ", "a.json.gz", "a.parquet"))
    assert not any(is_supported(Path(name)) for name in ("a.gz", "a.parquet.zst", "a.tar.gz", "jsonl", "a.pkl"))


def test_lines_are_read_one_at_a_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", JSON_LINES.encode() + b"\xff" * 10)
    rows = read_file(path)
    assert [next(rows), next(rows)] == [RawRow(row, f"{path}:{line}") for line, row in enumerate(ROWS, 1)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=examples(60), deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(), json_values, max_size=4), max_size=5))
def test_json_lines_come_back_as_written(
    rows: list[dict[str, object]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    write(path, "".join(json.dumps(row) + "\n" for row in rows))
    assert good(path) == rows


@settings(max_examples=examples(100), deadline=None)
@given(content=st.binary(max_size=60) | st.text("{}[]\":,ab\n\r\t;'1", max_size=60).map(str.encode))
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.tsv", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_any_bytes_give_rows_or_a_data_error(
    name: str, content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.mktemp("any") / name, content)
    with suppress(DataError):  # any other exception is a crash
        for row in read_file(path):
            assert isinstance(row, BadRow) or isinstance(row.row, dict)
