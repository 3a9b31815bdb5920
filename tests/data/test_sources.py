from __future__ import annotations

from pathlib import Path

import pytest

from qdora_fast.data.sources import read_rows
from qdora_fast.errors import DataError


def json_lines(path: Path, *values: int) -> Path:
    path.write_text("".join(f'{{"n": {value}}}\n' for value in values))
    return path


def test_a_folder_is_read_in_order_and_says_what_it_left_out(tmp_path: Path) -> None:
    json_lines(tmp_path / "b.jsonl", 3)
    json_lines(tmp_path / "a.jsonl", 1, 2)
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".hidden.jsonl").write_text("{}")
    rows, report = read_rows(str(tmp_path))
    assert [raw.row["n"] for raw in rows] == [1, 2, 3]
    assert report.files == ((str(tmp_path / "a.jsonl"), 2), (str(tmp_path / "b.jsonl"), 1))
    assert report.skipped == ("README.md",)


def test_max_rows_counts_over_all_files(tmp_path: Path) -> None:
    json_lines(tmp_path / "a.jsonl", 1, 2)
    json_lines(tmp_path / "b.jsonl", 3, 4)
    rows, report = read_rows(str(tmp_path), max_rows=3)
    assert [raw.row["n"] for raw in rows] == [1, 2, 3]
    assert [count for _, count in report.files] == [2, 1]


def test_a_saved_dataset_is_read_by_split(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list([{"n": 1}]), "test": Dataset.from_list([{"n": 2}])}).save_to_disk(tmp_path)
    assert [raw.row for raw in read_rows(str(tmp_path), split="test")[0]] == [{"n": 2}]
    with pytest.raises(DataError, match=r"no split 'valid'; set data.split to one of: train, test"):
        read_rows(str(tmp_path), split="valid")


def test_the_embedded_rows_need_no_file() -> None:
    rows, report = read_rows("demo", max_rows=5)
    assert len(rows) == 5
    assert report.files == (("demo", 5),)
    assert rows[0].place == "demo row 1"


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    json_lines(tmp_path / "rows.jsonl", 1)
    with pytest.raises(DataError, match=r"no such file or folder; did you mean rows\.jsonl\?"):
        read_rows(str(tmp_path / "rows.json"))
    with pytest.raises(DataError, match="does not exist either"):
        read_rows(str(tmp_path / "nowhere" / "rows.json"))


@pytest.mark.parametrize("path", ["./rows", "rows.jsonl", "../rows", "a/b/c", "rows.txt"])
def test_what_looks_like_a_file_is_never_sent_to_the_hub(path: str) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_rows(path)


def test_a_hub_id_that_cannot_be_loaded_is_one_message() -> None:
    with pytest.raises(DataError, match=r"'no-such-org/no-such-set' is no file or folder here, and loading it from"):
        read_rows("no-such-org/no-such-set")
    with pytest.raises(DataError, match="neither a file or folder here nor a hub dataset id"):
        read_rows("what is this?")


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data file in this folder"):
        read_rows(str(tmp_path))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no rows in it"):
        read_rows(str(tmp_path / "empty.jsonl"))
