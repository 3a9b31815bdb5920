from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

from qdora_fast.config.data import SourceSettings
from qdora_fast.config.own_code import allow_own_code
from qdora_fast.data.read import sources
from qdora_fast.data.read.readers import BadRow, RawRow
from qdora_fast.data.read.sources import ReadReport, fingerprint, open_source
from qdora_fast.system.errors import ConfigError, DataError


def asked(path: Path | str, **more: Any) -> SourceSettings:
    return SourceSettings.model_validate({"path": str(path), "format": "text", **more})


def read(path: Path | str, **more: Any) -> tuple[list[RawRow | BadRow], ReadReport]:
    source = open_source(asked(path, **more))
    rows = list(source.rows())
    return rows, source.report()


def numbers(rows: list[RawRow | BadRow]) -> list[int]:
    return [raw.row["n"] for raw in rows if isinstance(raw, RawRow)]


def json_lines(path: Path, *values: int) -> Path:
    path.write_text("".join(f'{{"n": {value}}}\n' for value in values))
    return path


def test_a_folder_is_read_in_order_and_says_what_it_left_out(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl.zst").write_bytes(zstd.compress(b'{"n": 3}\n'))
    json_lines(tmp_path / "a.jsonl", 1, 2)
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "model.pkl").write_text("never read")
    (tmp_path / ".hidden.jsonl").write_text("{}")
    rows, report = read(tmp_path)
    assert numbers(rows) == [1, 2, 3]
    assert report.files == ((str(tmp_path / "a.jsonl"), 2), (str(tmp_path / "b.jsonl.zst"), 1))
    assert report.skipped == ("README.md", "model.pkl")


def test_max_rows_counts_good_and_bad_rows_over_all_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": 1}\nbad\n')
    json_lines(tmp_path / "b.jsonl", 3, 4)
    (tmp_path / "c.jsonl").write_text("never opened, for it is not asked for")
    rows, report = read(tmp_path, max_rows=3)
    assert numbers(rows) == [1, 3]
    assert [count for _, count in report.files] == [2, 1, 0]


def test_rows_are_read_when_they_are_asked_for_and_the_first_ones_are_given_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('bad\n{"n": 0}\n' + '{"n": 1}\n' * 300)
    source = open_source(asked(path))
    assert source.report().files == ((str(path), 101),)
    rows = source.rows()
    assert isinstance(next(rows), BadRow)
    assert next(rows) == RawRow({"n": 0}, f"{path}:2")
    assert len(list(rows)) == 300
    assert source.report().files == ((str(path), 302),)


def test_the_format_is_that_of_the_first_hundred_good_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("bad\n" * 500 + '{"question": "x", "answer": "y"}\n' * 100 + '{"text": "x"}\n' * 100)
    source = open_source(asked(path, format="auto"))
    assert (source.detection.name, source.detection.checked) == ("columns", 100)
    assert len(list(source.rows())) == 700
    path.write_text('{"question": "x", "answer": "y"}\n{"text": "x"}\n' * 50)
    with pytest.raises(DataError, match=r"of mixed formats \(50 columns, 50 text\)"):
        open_source(asked(path, format="auto"))


def test_a_source_without_a_good_row_names_the_bad_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("bad\n" * 7)
    with pytest.raises(DataError, match=r"7 row\(s\) cannot be read:\n  .*a\.jsonl:1: broken JSON"):
        open_source(asked(path, format="auto"))
    monkeypatch.setattr(sources, "MOST_AHEAD", 5)  # a huge file is not read to its end for this
    with pytest.raises(DataError, match=r"5 row\(s\) cannot be read"):
        open_source(asked(path))


def test_with_a_formatter_the_format_is_that_of_what_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_forum.py").write_text(
        "def one(row):\n    return {'prompt': 'x', 'completion': str(row['n'])} if row['n'] != 2 else None\n"
        "def none(row):\n    return None\ndef wrong(row):\n    return row['m']\n"
    )
    path = json_lines(tmp_path / "a.jsonl", 1, 2, 3)
    with allow_own_code(["my_forum.py"]):
        source = open_source(asked(path, format="auto", formatter="my_forum.py:one"))
    assert source.detection.name == "prompt_completion"
    assert source.detection.checked == 2
    assert numbers(list(source.rows())) == [1, 2, 3]
    with pytest.raises(DataError, match="my_forum.py:none returned None for each of 3 rows"):
        open_source(asked(path, formatter="my_forum.py:none"))
    with pytest.raises(DataError, match=r"3 row\(s\) cannot be read:\n  .*:1: KeyError: 'm' \(my_forum.py:6\)"):
        open_source(asked(path, formatter="my_forum.py:wrong"))
    with pytest.raises(ConfigError, match="no function 'two'"):
        open_source(asked(path, formatter="my_forum.py:two"))


def test_a_saved_dataset_is_read_by_split(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list([{"n": 1}]), "test": Dataset.from_list([{"n": 2}])}).save_to_disk(tmp_path)
    assert numbers(read(tmp_path, split="test")[0]) == [2]
    with pytest.raises(DataError, match=r"no split 'valid'; set data.split to one of: train, test"):
        read(tmp_path, split="valid")


def test_a_saved_dataset_whose_columns_are_described_by_something_else_runs_nothing(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list([{"n": 1}]).save_to_disk(tmp_path)
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    witness = tmp_path / "ran"
    for kind in ("os.system", "Popen", "eval", "pa", {"_type": "eval"}, 5):
        info["features"] = {"n": {"_type": kind, "dtype": "int64", "command": f"touch {witness}"}}
        (tmp_path / "dataset_info.json").write_text(json.dumps(info))
        with pytest.raises(DataError, match="not a folder that save_to_disk has written"):
            read(tmp_path)
    assert not witness.exists()


def test_json_that_looks_like_an_object_of_python_stays_data(tmp_path: Path) -> None:
    row = {"text": "x", "_type": "os.system", "__reduce__": ["os.system", "false"], "!!python/object": "os.system"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert read(tmp_path / "a.jsonl")[0] == [RawRow(row, f"{tmp_path / 'a.jsonl'}:1")]


def test_the_embedded_rows_need_no_file() -> None:
    rows, report = read("demo", max_rows=5)
    assert len(rows) == 5
    assert report.files == (("demo", 5),)
    assert rows[0].source == "demo row 1"


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    json_lines(tmp_path / "rows.jsonl", 1)
    for ask in (open_source, fingerprint):
        with pytest.raises(DataError, match=r"no such file or folder; did you mean rows\.jsonl\?"):
            ask(asked(tmp_path / "rows.json"))
        with pytest.raises(DataError, match="does not exist either"):
            ask(asked(tmp_path / "nowhere" / "rows.json"))


@pytest.mark.parametrize("path", ["./rows", "rows.jsonl", "../rows", "a/b/c", "rows.txt", "rows.pkl", "rows.jsonl.zst"])
def test_what_looks_like_a_file_is_never_sent_to_the_hub(path: str) -> None:
    with pytest.raises(DataError, match="no such file"):
        read(path)


def test_a_hub_id_that_cannot_be_loaded_is_one_message() -> None:
    with pytest.raises(DataError, match=r"'no-such-org/no-such-set' is no file or folder here, and loading it from"):
        read("no-such-org/no-such-set")
    with pytest.raises(DataError, match="neither a file or folder here nor a hub dataset id"):
        read("what is this?")


def test_hub_rows_are_read_by_split_and_code_beside_them_is_never_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import datasets

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    path = json_lines(tmp_path / "a.jsonl", 1, 2)
    loaded = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))

    def load(*given: Any, **named: Any) -> Any:
        calls.append((given, named))
        return loaded

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows, report = read("org/name", split="train", config="main")
    assert numbers(rows) == [1, 2]
    assert rows[1].source == "org/name (train) row 2"
    assert report.files == (("org/name", 2),)
    assert len(fingerprint(asked("org/name", config="main"))) == 64
    assert calls == [(("org/name", "main"), {"split": "train"})] * 2


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data file in this folder"):
        read(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no rows in it"):
        read(tmp_path / "empty.jsonl")


def test_a_fingerprint_is_of_the_content_and_of_nothing_else(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    path = json_lines(here / "a.jsonl", 1, 2)
    json_lines(here / "b.jsonl", 3)
    before, of_one = fingerprint(asked(here)), fingerprint(asked(path))
    shutil.copytree(here, there)
    os.utime(there / "a.jsonl", (0, 0))
    (there / "README.md").write_text("not read")
    (there / "a.jsonl").rename(tmp_path / "moved.jsonl")
    assert fingerprint(asked(tmp_path / "moved.jsonl", weight=2)) == of_one
    (tmp_path / "moved.jsonl").rename(there / "a.jsonl")
    assert fingerprint(asked(there)) == before
    json_lines(there / "a.jsonl", 1, 4)
    assert fingerprint(asked(there)) != before
    shutil.copy(path, tmp_path / "a.csv")  # the same bytes, read in another way
    assert len({before, of_one, fingerprint(asked(tmp_path / "a.csv")), fingerprint(asked("demo"))}) == 4


def test_a_fingerprint_of_a_saved_dataset_is_of_its_split(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = [{"n": number} for number in range(100)]
    DatasetDict({"train": Dataset.from_list(rows), "test": Dataset.from_list([{"n": 2}])}).save_to_disk(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert fingerprint(asked(tmp_path / "a")) == fingerprint(asked(tmp_path / "b"))
    assert fingerprint(asked(tmp_path / "a")) != fingerprint(asked(tmp_path / "a", split="test"))


def test_a_fingerprint_covers_the_code_of_the_formatter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = json_lines(tmp_path / "a.jsonl", 1)
    Path("my_code.py").write_text("def f(row):\n    return row\n")
    before = fingerprint(asked(path, formatter="my_code.py:f"))
    Path("my_code.py").write_text("def f(row):\n    return None\n")
    assert len({before, fingerprint(asked(path, formatter="my_code.py:f")), fingerprint(asked(path))}) == 3
