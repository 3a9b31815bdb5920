"""Pipes, devices and links where files are expected: one clear error at once, whoever reads them. No command waits."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from qdora_fast.cli.main import cli
from qdora_fast.system.errors import QdoraError
from qdora_fast.system.manifest import write_manifest

PATIENCE = 20
"""Seconds after which a command waits for ever."""
FILES_OF_A_RUN = (
    *("config.yaml", "model.json", "environment.json", "metrics.jsonl", "data/train.jsonl", "data/report.json"),
    *("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "evaluation/evaluation.json"),
)
COMMANDS = ("evaluate", "report", "verify", "chat", "export", "log", "review")


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """End a test that waits for what never comes."""

    def ended(*_: object) -> None:
        raise AssertionError("it waits for somebody to write into a pipe")

    before = signal.signal(signal.SIGALRM, ended)
    signal.alarm(PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _refusal(*arguments: str | Path) -> str:
    """The message with which a command refuses."""
    with pytest.raises((QdoraError, SystemExit)) as refused:
        CliRunner().invoke(cli, [str(each) for each in arguments], catch_exceptions=False, standalone_mode=False)
    assert isinstance(refused.value, QdoraError), refused.value
    return str(refused.value)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Files named as those of a run; what is in them does not matter here."""
    folder = tmp_path / "run"
    for name in FILES_OF_A_RUN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("model: {name: demo}\ndata: {path: demo}\n" if name.endswith("yaml") else "{}")
    write_manifest(folder / "adapter", {})
    return folder


@pytest.mark.parametrize("name", FILES_OF_A_RUN)
@pytest.mark.parametrize("command", [each for each in COMMANDS if each != "log"])
def test_a_pipe_in_a_run_is_refused(run: Path, command: str, name: str) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)
    asked = ["--once", "x"] if command == "chat" else ["--to", "merged_16bit"] if command == "export" else []
    assert name in _refusal(command, run, *asked)


@pytest.mark.parametrize("command", ["verify", "chat"])
def test_a_link_out_of_an_adapter_is_refused(run: Path, command: str, tmp_path: Path) -> None:
    (tmp_path / "private.txt").write_text("private")
    (run / "adapter" / "README.md").symlink_to(tmp_path / "private.txt")
    asked = ["--once", "x"] if command == "chat" else []
    for target in (run, run / "adapter"):
        assert "README.md" in _refusal(command, target, *asked)


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".json", ".parquet", ".arrow", ".jsonl.gz", ".jsonl.zst"])
def test_rows_are_read_from_files_alone(tmp_path: Path, ending: str) -> None:
    rows = tmp_path / f"rows{ending}"
    os.mkfifo(rows)
    assert "rows" in _refusal("data", "demo", "--set", f"data.path={rows}")
    assert "rows" in _refusal("data", "demo", "--set", f"data.path={tmp_path}")


def test_a_device_is_no_file_of_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").symlink_to("/dev/zero")
    assert "rows.jsonl" in _refusal("data", "demo", "--set", f"data.path={tmp_path / 'rows.jsonl'}")


def test_a_config_is_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "my.yaml")
    for command in ("plan", "train", "data"):
        assert "my.yaml" in _refusal(command, tmp_path / "my.yaml")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"])
def test_a_pipe_in_a_base_is_refused(demo_base_folder: Path, tmp_path: Path, name: str) -> None:
    base = tmp_path / "base"
    shutil.copytree(demo_base_folder, base)
    (base / name).unlink(missing_ok=True)
    os.mkfifo(base / name)
    assert name in _refusal("train", "demo", "--dry-run", "--set", f"model.name={base}")


@pytest.fixture(scope="module")
def demo_base_folder() -> Path:
    """The embedded base."""
    from qdora_fast.data.demo.base import demo_base

    return demo_base()


def test_an_adapter_is_files(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    os.mkfifo(tmp_path / "adapter" / "adapter_model.safetensors")
    assert "adapter_model" in _refusal("import-adapter", tmp_path / "adapter", "--base", "demo")
