"""Binary tables: the same rows as from text, and damage that costs a row or a message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from qdora_fast.data.read.readers import BadRow, RawRow, read_file
from qdora_fast.data.read.tables import dataset_rows, parquet_rows
from qdora_fast.system.errors import DataError

ROWS = [{"question": "Wo?", "answer": "Hier"}, {"question": "क्या?", "answer": "हाँ"}]


def test_parquet_and_arrow_give_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    from datasets import Dataset

    table = Dataset.from_list(ROWS)
    table.to_parquet(str(tmp_path / "a.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    (stream,) = (tmp_path / "saved").glob("*.arrow")
    file = tmp_path / "file.arrow"
    with pyarrow.ipc.new_file(file, table.data.table.schema) as writer:
        writer.write_table(table.data.table)
    for path in (tmp_path / "a.parquet", stream, file):
        assert [raw.row for raw in read_file(path) if isinstance(raw, RawRow)] == ROWS
        assert [raw.source for raw in read_file(path)] == [f"{path} row 1", f"{path} row 2"]


def test_a_value_that_cannot_be_read_costs_its_row_only(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    text = pyarrow.array([b"good", b"caf\xe9", b"good, too"]).cast(pyarrow.string(), safe=False)
    day = pyarrow.array([0, 1, 2**30], pyarrow.int32()).cast(pyarrow.date32())
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": text, "day": day}), path)
    first, second, third = read_file(path)
    assert isinstance(first, RawRow)
    assert first.row["text"] == "good"
    for row, number in ((second, 2), (third, 3)):
        assert isinstance(row, BadRow)
        assert (row.reason, row.source) == ("wrong_type", f"{path} row {number}")
        assert row.detail.startswith("a value cannot be read: ")


def test_a_cut_parquet_file_says_how_many_rows_came_before(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"n": list(range(8_000))}), path, row_group_size=4_000, compression="gzip", use_dictionary=False
    )
    damaged = bytearray(path.read_bytes())
    start = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    damaged[start : start + 200] = b"\xff" * 200
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"not a readable Parquet file \(.*; [1-9]\d* rows were read before\)"):
        list(read_file(path))


def test_pictures_and_sound_are_not_decoded_however_deep_they_lie() -> None:
    from datasets import Audio, Dataset, Image, List

    broken = {"bytes": b"no picture and no sound", "path": None}
    stored = {"text": "x", "picture": broken, "sound": broken, "pictures": [broken]}
    dataset = Dataset.from_list([stored])
    dataset = dataset.cast_column("picture", Image()).cast_column("sound", Audio())
    dataset = dataset.cast_column("pictures", List(Image()))
    assert list(dataset_rows(dataset, "rows")) == [(stored, frozenset({"picture", "sound", "pictures"}))]


def test_rows_of_mixed_shapes_come_back_as_they_were_written(tmp_path: Path) -> None:
    from datasets import Dataset, Features, Json, Value

    rows = [{"call": {"city": "Paris"}, "n": 1}, {"call": ["x", None], "n": 2}]
    Dataset.from_list(rows, features=Features({"call": Json(), "n": Value("int64")})).save_to_disk(str(tmp_path))
    (path,) = tmp_path.glob("*.arrow")
    read = [raw for raw in read_file(path) if isinstance(raw, RawRow)]
    assert [raw.row for raw in read] == rows
    assert not any(raw.padded for raw in read)  # as written: null is null


def test_columns_of_structs_are_named_and_others_are_not(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"tools": [{"name": "a"}, {"kind": "b"}], "text": '{"a": null}', "words": ["x"]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (raw,) = read_file(tmp_path / "a.parquet")
    assert isinstance(raw, RawRow)
    assert (raw.row["tools"], raw.padded) == ([{"name": "a", "kind": None}, {"name": None, "kind": "b"}], {"tools"})


@pytest.mark.parametrize("kind", ["pa", "datasets", "Popen", "eval", "os.system", "__import__", 7, None])
def test_a_column_description_that_names_something_else_runs_nothing(kind: Any, tmp_path: Path) -> None:
    import pyarrow

    witness = tmp_path / "ran"
    described = {"n": {"_type": kind, "dtype": "string", "args": f"touch {witness}", "command": f"touch {witness}"}}
    schema = pyarrow.schema([("n", pyarrow.int64())]).with_metadata(
        {"huggingface": json.dumps({"info": {"features": described}})}
    )
    path = tmp_path / "a.arrow"
    with pyarrow.ipc.new_stream(path, schema) as writer:
        writer.write_table(pyarrow.table({"n": [1]}, schema=schema))
    with pytest.raises(DataError, match="not a readable Arrow stream"):
        list(read_file(path))
    assert not witness.exists()


def _table(path: Path, columns: dict[str, Any]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="zstd")
    return path


def test_a_small_file_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    word = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 100_000, pyarrow.int32()), ["a" * 200_000])
    path = _table(tmp_path / "p.parquet", {"instruction": word, "output": ["b"] * 100_000})
    with pytest.raises(DataError, match="times its size"):
        for _ in parquet_rows(path):
            pass


def test_a_table_has_columns_of_a_usable_number(tmp_path: Path) -> None:
    wide = _table(tmp_path / "wide.parquet", {f"c{n}": [1] for n in range(10_001)})
    with pytest.raises(DataError, match="10,001 columns"):
        list(parquet_rows(wide))


def test_text_that_repeats_is_no_bomb(tmp_path: Path) -> None:
    tools = "the same description of tools, row by row. " * 700
    path = _table(tmp_path / "p.parquet", {"tools": [tools] * 4_000, "answer": [f"answer {n}" for n in range(4_000)]})
    assert sum(1 for _ in parquet_rows(path)) == 4_000
