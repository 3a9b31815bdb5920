"""Every example runs, from its first line to its last."""

from __future__ import annotations

import os
import runpy
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from qdora_fast.config.presets import find_config

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_each_example_is_named_in_the_index_and_opens_with_its_command() -> None:
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f"[`{path.name}`]" in index
        assert f"python examples/{path.name}" in path.read_text(encoding="utf-8")


def test_the_cloud_job_goes_on_after_75_and_ends_with_every_other_code(tmp_path: Path) -> None:
    job = YAML(typ="safe").load(EXAMPLES / "skypilot.yaml")
    assert job["resources"]["use_spot"] is True
    assert find_config(job["envs"]["CONFIG"]).is_file()
    program = tmp_path / ".venv" / "bin" / "qdora-fast"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$@" >> calls\nexit $(sed -n "$(wc -l < calls)p" codes)\n')
    program.chmod(0o755)
    for codes, calls in (([75, 75, 0], 3), ([75, 20], 2), ([0], 1)):
        (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
        (tmp_path / "calls").unlink(missing_ok=True)
        done = subprocess.run(["bash", "-c", job["run"]], cwd=tmp_path, env=job["envs"] | {"PATH": os.environ["PATH"]})
        assert done.returncode == codes[-1]
        said = (tmp_path / "calls").read_text().splitlines()
        assert len(said) == calls
        assert said[0].startswith("train qwen3-8b-24gb --auto-resume --set data.path=")


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
def test_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    run = runpy.run_path(str(EXAMPLES / "notebook.py"))["run"]
    assert len(run.metrics()) == 20 and "Data      rows in memory: 200 rows in" in capsys.readouterr().err


@pytest.mark.slow
def test_fuse_in_trl(capsys: pytest.CaptureFixture) -> None:
    module = runpy.run_path(str(EXAMPLES / "fuse_in_trl.py"))
    assert module["main"](max_steps=3) > 0
    said = capsys.readouterr()
    assert "14 of 14 layers fused" in said.err
    assert "mean loss over 3 steps" in said.out
