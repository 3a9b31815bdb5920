"""Every example runs, from its first line to its last."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_each_example_is_named_in_the_index_and_opens_with_its_command() -> None:
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f"[`{path.name}`]" in index
        assert f"python examples/{path.name}" in path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_quickstart(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    module = runpy.run_path(str(EXAMPLES / "quickstart.py"))
    answer = module["main"](str(tmp_path), max_steps=30)
    assert answer
    assert "the merged model is the trained one: True" in capsys.readouterr().out


@pytest.mark.slow
def test_own_data(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    module = runpy.run_path(str(EXAMPLES / "own_data.py"))
    merged = module["main"](tmp_path, max_steps=10)
    assert (merged / "model.safetensors").is_file()
    said = capsys.readouterr().out
    assert "columns: {prompt:" in said
    assert "did you mean `data.columns`?" in said


@pytest.mark.slow
def test_own_format(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    module = runpy.run_path(str(EXAMPLES / "own_format.py"))
    question, answer = module["main"](tmp_path)
    assert question["content"].startswith("What does ")
    assert answer["content"].startswith("Water the ")
    said = capsys.readouterr()
    assert "34 threads to train on, 5 held out" in said.out
    assert "4 x left_out" in said.err
    assert "1 x bad_json: the line is not valid JSON (threads.jsonl:6, " in said.err


@pytest.mark.slow
def test_fuse_in_trl(capsys: pytest.CaptureFixture) -> None:
    module = runpy.run_path(str(EXAMPLES / "fuse_in_trl.py"))
    assert module["main"](max_steps=3) > 0
    said = capsys.readouterr()
    assert "14 of 14 layers fused" in said.err
    assert "mean loss over 3 steps" in said.out
