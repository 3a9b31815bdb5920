"""Which files of a folder are read: those of a split, and all where no name says one."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdora_fast.config import DataSettings
from qdora_fast.data.read.folders import check_split_of_file, folder_files
from qdora_fast.data.read.sources import fingerprint, open_source
from qdora_fast.system.errors import DataError, RefusedError

SHARD = "-00000-of-00001-a09b74b3ef9c3b56.parquet"


def folder(path: Path, *names: str) -> Path:
    for name in names:
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'{{"text": "{name}"}}\n')
    return path


def read(path: Path, split: str = "train", *, held_out: bool = False) -> list[str]:
    return [str(file.relative_to(path)) for file in folder_files(path, split, held_out=held_out).files]


@pytest.mark.parametrize(
    ("train", "other"),
    [
        ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        (f"data/train{SHARD}", f"data/validation{SHARD}"),
        ("train.jsonl", "dev.jsonl"),
        ("train_data.json.gz", "eval_data.json.gz"),
        ("gsm8k_train.jsonl", "gsm8k_test.jsonl"),
        ("train_en.jsonl", "test_en.jsonl"),
        ("my.train.2.csv", "my.valid.1.csv"),
        ("train/a.jsonl", "test/a.jsonl"),
        ("data/train/a.jsonl", "data/val/a.jsonl"),
        ("rows.jsonl", "test.jsonl"),
        ("my_rows.jsonl", "evaluation.jsonl"),
    ],
)
def test_other_splits_are_left_out_and_named(train: str, other: str, tmp_path: Path) -> None:
    folder(tmp_path, train, other)
    assert read(tmp_path) == [train]
    assert [name for name, _ in folder_files(tmp_path).other_splits] == [other]
    assert read(tmp_path, held_out=True) == [other]


@pytest.mark.parametrize(
    "names",
    [
        ["contest.jsonl", "latest.jsonl", "training_notes.jsonl", "testimonials.jsonl"],
        ["faq.jsonl", "load_test.jsonl"],
        ["test_cases.jsonl", "train_schedule.jsonl"],
        ["part-1.jsonl", "part-2.jsonl"],
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        ["development.jsonl", "trained.jsonl", "validity.jsonl"],
    ],
)
def test_names_that_are_no_splits_harm_nobody(names: list[str], tmp_path: Path) -> None:
    assert read(folder(tmp_path, *names)) == sorted(names)


def test_a_split_is_read_by_any_of_its_names_and_one_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    folder(tmp_path, "train.jsonl", "dev.jsonl", "more.jsonl")
    for split in ("validation", "dev", "val"):
        assert read(tmp_path, split) == ["dev.jsonl"]
    assert folder_files(tmp_path, "dev").skipped == ("more.jsonl",)
    assert read(tmp_path) == ["more.jsonl", "train.jsonl"]
    with pytest.raises(DataError, match=r"no split 'test' \(data.split\); there are: train, validation"):
        folder_files(tmp_path, "test")


def test_a_folder_of_a_test_split_alone_is_not_trained_on_but_held_out(tmp_path: Path) -> None:
    folder(tmp_path, "test-00000-of-00002.parquet", "test-00001-of-00002.parquet")
    with pytest.raises(DataError, match=r"no split 'train' \(data.split\); there are: test"):
        folder_files(tmp_path)
    assert len(read(tmp_path, "test")) == len(read(tmp_path, held_out=True)) == 2


def test_splits_with_more_in_their_names_are_asked_for(tmp_path: Path) -> None:
    folder(tmp_path, f"train_sft{SHARD}", f"train_gen{SHARD}", f"test_sft{SHARD}")
    with pytest.raises(DataError, match="there are: test_sft, train_gen, train_sft"):
        folder_files(tmp_path)
    assert read(tmp_path, "train_sft") == [f"train_sft{SHARD}"]


def test_of_several_splits_to_hold_out_and_of_several_sets_one_is_named(tmp_path: Path) -> None:
    folder(tmp_path / "a", "train.jsonl", "test.jsonl", "validation.jsonl")
    with pytest.raises(DataError, match="holds the splits test and validation; name the file to hold out"):
        folder_files(tmp_path / "a", held_out=True)
    folder(tmp_path / "b", "main/train.jsonl", "socratic/train.jsonl", "README.md")
    with pytest.raises(DataError, match=r"several sets in folders of their own \(main, socratic\)"):
        folder_files(tmp_path / "b")
    folder(tmp_path / "c", "rows.jsonl", "old/rows.jsonl", "pictures/a.png")
    assert folder_files(tmp_path / "c").skipped == ("old/",)


def test_a_split_of_a_single_file_is_refused_unless_the_file_is_named_so(tmp_path: Path) -> None:
    check_split_of_file(tmp_path / "rows.jsonl", "train")
    check_split_of_file(tmp_path / "dev.jsonl", "validation")
    with pytest.raises(DataError, match="is a single file, which has no splits; remove data.split"):
        check_split_of_file(tmp_path / "rows.jsonl", "validation")


def test_rows_to_hold_out_are_read_from_the_same_folder_and_have_a_fingerprint_of_their_own(tmp_path: Path) -> None:
    folder(tmp_path, "train.jsonl", "test.jsonl")
    settings = DataSettings.model_validate({"path": str(tmp_path), "held_out_path": str(tmp_path)})
    own = settings.own_held_out
    assert own is not None
    (row,) = open_source(own, held_out=True).rows()
    assert row.source == f"{tmp_path / 'test.jsonl'}:1"
    assert fingerprint(own, held_out=True) != fingerprint(settings.mixture[0])


def test_links_among_rows_stay_in_their_folder(tmp_path: Path) -> None:
    """A private file must not come into a run because a folder that was sent along links to it."""
    private = tmp_path / "private.csv"
    private.write_text("instruction,output\na,b\n", encoding="utf-8")
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "real.csv").write_text("instruction,output\nc,d\n", encoding="utf-8")
    (rows / "same.csv").symlink_to("real.csv")
    assert read(rows) == ["real.csv", "same.csv"]
    (rows / "a.csv").symlink_to(private)
    with pytest.raises(RefusedError, match=r"a\.csv: a link that leads out of .*; .* data\.sources"):
        read(rows)
