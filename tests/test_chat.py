"""Talking to a run is talking with its template and its stop tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdora_fast.chat import answer, load
from qdora_fast.errors import ConfigError
from qdora_fast.run import train
from qdora_fast.run_folder import RunFolder


def test_adapter_and_merged_model_give_the_same_answers(demo_run: RunFolder) -> None:
    rows = demo_run.read_rows("data/held_out.jsonl")[:6]
    said = []
    for path in (demo_run.path, demo_run.path / "merged_16bit"):
        model, tokenizer, stop_ids = load(path)
        assert tokenizer.eos_token_id in stop_ids
        said.append([answer(model, tokenizer, row["messages"][:1], stop_ids, 24) for row in rows])
    assert sum(a == b for a, b in zip(*said, strict=True)) >= 5
    assert all("###" not in text for text in said[1])  # it stops at the end of its answer


def test_an_unfinished_run_says_so(tiny_config, tmp_path: Path) -> None:
    run = train(tiny_config())
    run.adapter.rename(run.path / "away")
    with pytest.raises(ConfigError, match="has no adapter yet"):
        load(run.path)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="names no architecture"):
        load(tmp_path)
