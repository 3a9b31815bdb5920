"""Rows and tokens on the disk look like lists, and what goes in comes out."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from qdora_fast.data.store import ROWS, Chunk, Columns, Rows, Spool, open_examples
from qdora_fast.system.errors import DiskSpaceError, QdoraError


def chunk_of(numbers: list[int]) -> Chunk:
    lines = [f'{{"messages": [], "text": "row {n} \u0930", "meta": {{"row": {n}}}}}\n'.encode() for n in numbers]
    n = len(numbers)
    return Chunk(
        Columns(
            starts=np.array([len(line) for line in lines], np.int64),
            keys=np.full((n, 16), numbers[0], np.uint8),
            tokens=np.array(numbers, np.int32),
        ),
        b"".join(lines),
        input_ids=np.concatenate([np.arange(number, dtype=np.int32) for number in numbers]),
        labels=np.full(sum(numbers), -100, np.int32),
        signatures=np.full((n, 4), numbers[0], np.uint32),
        rejected=[("a:1", "too_long", "9 of 8")],
    )


def test_what_goes_in_comes_out_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for numbers in ([1, 2, 3], [4, 5]):
        spool.add(chunk_of(numbers))
    columns = spool.columns()
    assert len(columns) == 5
    np.testing.assert_array_equal(spool.signatures(5, 4)[:, 0], [1, 1, 1, 4, 4])
    spool.close()
    assert columns.starts[-1] == (tmp_path / ROWS).stat().st_size
    rows = Rows(tmp_path / ROWS, columns.starts, np.array([4, 0, 2]))
    assert [row["meta"]["row"] for row in rows] == [5, 1, 3]
    assert [row["text"] for row in rows[1:]] == ["row 1 \u0930", "row 3 \u0930"]
    assert rows[-1]["meta"]["row"] == 3
    with pytest.raises(IndexError):
        rows[3]
    examples = open_examples(tmp_path, np.array([4, 0, 0]))
    assert examples is not None
    assert examples[0] == {"input_ids": [0, 1, 2, 3, 4], "labels": [-100] * 5}
    assert [len(example["labels"]) for example in examples] == [5, 1, 1]
    assert examples.dataset().column_names == ["input_ids", "labels"]
    assert (tmp_path / "rejected.jsonl").read_text().count("too_long") == 2
    assert not (tmp_path / "signatures.bin").exists()


def test_chosen_rows_are_copied_byte_for_byte(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.add(chunk_of([1, 2, 3]))
    spool.close()
    Rows(tmp_path / ROWS, spool.columns().starts, np.array([0, 2])).write(tmp_path / "some.jsonl")
    lines = (tmp_path / ROWS).read_bytes().splitlines(keepends=True)
    assert (tmp_path / "some.jsonl").read_bytes() == lines[0] + lines[2]


def test_an_empty_set_has_nothing_and_no_tokens(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    columns = spool.columns()
    assert len(columns) == 0
    assert spool.signatures(0, 256).shape == (0, 256)
    spool.close()
    rows = Rows(tmp_path / ROWS, columns.starts, np.zeros(0, np.int64))
    assert len(rows) == 0 and list(rows) == [] and rows[:3] == []
    assert open_examples(tmp_path, np.zeros(0, np.int64)) is None


@pytest.mark.parametrize(("error", "kind"), [(errno.ENOSPC, DiskSpaceError), (errno.EACCES, QdoraError)])
def test_what_a_disk_refuses_is_our_error_and_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, kind: type[QdoraError]
) -> None:
    def refuse(self: Spool, rejected: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(Spool, "reject", refuse)
    with pytest.raises(kind, match=rf"{os.strerror(error)}.*QDORA_FAST_CACHE"):
        Spool(tmp_path).add(Chunk(Columns()))
