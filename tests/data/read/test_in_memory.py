"""Rows that a Python program holds are read as the same rows would be from a file."""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdora_fast.config.data import SourceSettings
from qdora_fast.data.read import in_memory
from qdora_fast.data.read.readers import BadRow, RawRow
from qdora_fast.data.read.sources import fingerprint, open_source
from qdora_fast.system.errors import ConfigError, DataError

ROWS: list[dict[str, Any]] = [
    {
        "messages": [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": f"answer {n}"}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"ab"[n]: {"type": "string"}}}}],
    }
    for n in range(2)
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDORA_FAST_CACHE", str(tmp_path / "cache"))


def read(rows: object, **how: Any) -> list[Any]:
    return [json.loads(line) for line in in_memory.store(rows, **how).read_bytes().split(b"\n") if line]


def test_every_kind_of_rows_is_the_same_rows() -> None:
    from datasets import Dataset

    table, dataset = pyarrow.Table.from_pylist(ROWS), Dataset.from_list(ROWS)
    kinds = {
        "list": ROWS,
        "tuple": tuple(ROWS),
        "generator": (row for row in ROWS),
        "columns": {key: [row[key] for row in ROWS] for key in ROWS[0]},
        "pandas": pandas.DataFrame(ROWS),
        "table": table,
        "Dataset": dataset,
        "Dataset as torch": dataset.with_format("numpy"),
        "streamed": dataset.to_iterable_dataset(),
        "pandas of a table": dataset.to_pandas(),
    }
    kinds.pop("columns")  # a column of objects alone may be the one row of a file; see below
    for kind, rows in kinds.items():
        assert read(rows) == ROWS, kind
    assert read({"q": ["a", "b"], "answer": ["c", "d"]}) == [{"q": "a", "answer": "c"}, {"q": "b", "answer": "d"}]


def test_missing_values_dates_and_numbers_of_a_frame() -> None:
    frame = pandas.DataFrame(
        {
            "text": ["a", None],
            "n": pandas.array([1, None], dtype="Int64"),
            "share": [0.5, float("nan")],
            "day": pandas.to_datetime(["2026-01-31", None]),
        },
        index=pandas.Index([7, 8], name="id"),
    )
    assert read(frame) == [
        {"id": 7, "text": "a", "n": 1, "share": 0.5, "day": "2026-01-31T00:00:00"},
        {"id": 8, "text": None, "n": None, "share": None, "day": None},
    ]
    assert read([{"day": datetime.date(2026, 1, 31), "of": dataclasses.make_dataclass("Of", ["a"])(1)}]) == [
        {"day": "2026-01-31", "of": {"a": 1}}
    ]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.text(max_size=4),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.text(max_size=8),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
                max_leaves=6,
            ),
            max_size=3,
        ),
        max_size=4,
    )
)
def test_what_json_can_say_comes_back_as_it_was(rows: list[dict[str, Any]]) -> None:
    assert read(rows) == rows


@pytest.mark.parametrize("value", [b"text", object(), {1, 2}, lambda: 0])
def test_a_value_that_is_none_is_named_by_row_and_column(value: object) -> None:
    with pytest.raises(DataError, match=r"rows in memory: row 2, column 'answer': .*cannot be the type"):
        in_memory.store([{"answer": "a"}, {"answer": value}])
    assert list((in_memory.cache_folder() / "rows").iterdir()) == []


def test_what_holds_no_rows_is_refused_with_what_does() -> None:
    from datasets import Dataset, DatasetDict

    class Lazy:
        def __getitem__(self, key: int) -> int:
            raise TypeError

    for wrong in (5, None, Lazy()):
        with pytest.raises(ConfigError, match=r"rows are of type .* give a list of dictionaries, a DataFrame"):
            in_memory.store(wrong)
    with pytest.raises(ConfigError, match=r"all splits \(train, test\)"):
        in_memory.store(DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS)))
    with pytest.raises(ConfigError, match=r"goes into data\.path"):
        in_memory.store("rows.jsonl")
    with pytest.raises(ConfigError, match="column 'a' stands twice"):
        in_memory.store(pandas.DataFrame([[1, 2]], columns=["a", "a"]))
    holds_itself: list[Any] = []
    holds_itself.append(holds_itself)
    with pytest.raises(DataError, match="row 1: nested too deeply"):
        in_memory.store([{"a": holds_itself}])


def test_a_source_calls_them_by_name_and_row_and_knows_the_same_rows_again() -> None:
    path = in_memory.store([{"text": "a"}, 3, {"text": "b"}])
    source = open_source(SourceSettings(path=str(path)))
    rows = list(source.rows())
    assert source.report().path == "rows in memory"
    assert [row.source for row in rows] == [f"rows in memory row {n}" for n in (1, 2, 3)]
    assert [type(row) for row in rows] == [RawRow, BadRow, RawRow]
    assert in_memory.store([{"text": "a"}, 3, {"text": "b"}]) == path
    other = in_memory.store([{"text": "a"}, 3, {"text": "c"}], "held-out rows in memory")
    assert in_memory.name_of(other) == "held-out rows in memory" and in_memory.name_of("rows.jsonl") is None
    assert fingerprint(SourceSettings(path=str(path))) != fingerprint(SourceSettings(path=str(other)))
    path.unlink()
    with pytest.raises(DataError, match="rows in memory: no longer in the cache"):
        open_source(SourceSettings(path=str(path)))
    with pytest.raises(DataError, match="rows in memory: no rows in it"):
        open_source(SourceSettings(path=str(in_memory.store([]))))


def test_no_more_rows_are_taken_than_are_asked_for() -> None:
    def endless() -> Any:
        while True:
            yield {"text": "a"}

    assert read(endless(), most=3) == [{"text": "a"}] * 3


def test_a_picture_of_a_dataset_is_refused_as_in_a_file() -> None:
    from datasets import Dataset, Features, Image, Value

    picture = {"bytes": b"\x89PNG", "path": None}
    features = Features({"image": Image(), "question": Value("string"), "answer": Value("string")})
    dataset = Dataset.from_list([{"image": picture, "question": "what?", "answer": "a cat"}], features=features)
    assert read(dataset)[0]["image"] == {"bytes": "4 bytes", "path": ""}
