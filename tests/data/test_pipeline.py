"""Any number of workers gives the same rows, in the same order; one row at a time gives the same tokens."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from plain_rendering import render

from qdora_fast.config import DataSettings
from qdora_fast.data import choose_template, pipeline, prepare
from qdora_fast.data.tokenize.render import Rendering
from qdora_fast.system.errors import DataError


def rows_file(path: Path, count: int) -> Path:
    """Rows of all kinds: fit, doubled, blank, broken."""
    lines = []
    for i in range(count):
        row: dict[str, Any] = {
            "id": i,
            "question": f"What is number {i}?",
            "answer": f"It is {i}, " + "word " * (i % 7),
        }
        if i % 50 == 0:
            row = {"id": 0, "question": "Again and again?", "answer": "Always the same."}
        if i % 60 == 1:
            row["answer"] = " "
        lines.append(json.dumps(row) if i % 70 != 2 else '{"question": "cut')
    path.write_text("\n".join(lines))
    return path


def test_workers_change_speed_and_nothing_else(tmp_path: Path, base_tokenizer: Any) -> None:
    path = rows_file(tmp_path / "rows.jsonl", 6 * pipeline.ROWS_PER_CHUNK + 11)
    choose_template(base_tokenizer, "auto")
    rendering = Rendering(base_tokenizer, 256)
    seen: dict[int, list[int]] = {}

    def prepared(workers: int) -> Any:
        settings = DataSettings(path=str(path), on_bad_row="skip", workers=workers, cache=False)
        seen[workers] = []
        return prepare(settings, seed=3, rendering=rendering, on_rows=seen[workers].append)

    alone, together = prepared(1), prepared(3)
    assert alone.report == together.report
    assert list(alone.train) == list(together.train)
    assert list(alone.held_out_examples) == list(together.held_out_examples)
    assert sum(seen[1]) == sum(seen[3]) == alone.report.rows_in
    names = [[p.name for p in sorted(each.folder.iterdir())] for each in (alone, together)]
    assert names[0] == names[1]
    for name in ("rejected.jsonl", "duplicates.jsonl", "rows.jsonl"):
        assert (alone.folder / name).read_bytes() == (together.folder / name).read_bytes()


def test_the_tokens_are_those_of_the_plain_form(tmp_path: Path, base_tokenizer: Any) -> None:
    path = rows_file(tmp_path / "rows.jsonl", 300)
    choose_template(base_tokenizer, "auto")
    settings = DataSettings(path=str(path), on_bad_row="skip")
    data = prepare(settings, seed=3, rendering=Rendering(base_tokenizer, 256))
    for rows, examples in ((data.train, data.train_examples), (data.held_out, data.held_out_examples)):
        plain = render(list(rows), base_tokenizer, max_length=256)
        assert plain.report.kept == len(rows)
        assert list(examples or []) == plain.examples
    assert data.report.tokens is not None
    assert data.report.tokens.total == sum(len(each["input_ids"]) for each in data.train_examples or [])
    assert data.report.tokens.trained == sum(
        label >= 0 for each in data.train_examples or [] for label in each["labels"]
    )


def test_a_training_row_is_found_by_its_tokens(tmp_path: Path, base_tokenizer: Any) -> None:
    path = rows_file(tmp_path / "rows.jsonl", 300)
    choose_template(base_tokenizer, "auto")
    data = prepare(DataSettings(path=str(path), on_bad_row="skip"), seed=3, rendering=Rendering(base_tokenizer, 256))
    for index in (0, 7, len(data.train) - 1):
        place = data.source_of(data.tokens[index]["input_ids"])
        assert place == data.train[index]["meta"]["source"]
        row = json.loads(path.read_text().splitlines()[int(str(place).rpartition(":")[2]) - 1])
        assert row["question"] == data.train[index]["messages"][0]["content"]
    assert data.held_out_examples is not None
    assert data.source_of(data.held_out_examples[0]["input_ids"]) is None
    assert data.source_of([1, 2, 3]) is None


def test_doubled_ids_are_told_and_kept(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "rows.jsonl", 200)
    report = prepare(DataSettings(path=str(path), on_bad_row="skip"), seed=3).report
    assert report.duplicate_ids is not None
    column, count, examples = report.duplicate_ids
    assert (column, count) == ("id", 3)
    assert "rows.jsonl:51" in examples[0]
    assert any("earlier row" in warning for warning in report.warnings)


def test_a_worker_that_dies_is_an_error_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = rows_file(tmp_path / "rows.jsonl", 6 * pipeline.ROWS_PER_CHUNK)
    monkeypatch.setattr(pipeline, "_in_worker", _die)
    settings = DataSettings(path=str(path), on_bad_row="skip", workers=2, cache=False)
    with pytest.raises(DataError, match=r"a worker process died.*data.workers=1"):
        prepare(settings, seed=1)


def _die(job: object) -> None:
    os._exit(9)
