"""What a user types, in a process of its own: messages, exit codes, standard output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qdora_fast.cli.main import SECTIONS, cli


def _run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from qdora_fast.cli.main import main; main()", *arguments]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UNSLOTH_")}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def test_help_names_every_command() -> None:
    said = _run("--help").stdout
    for command in ("train", "export", "chat", "serve", "doctor", "presets"):
        assert f"\n  {command}" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "no-such-preset"], "no config file or preset"),
        (["train", "demo", "--set", "train.lr=1"], "did you mean `train.learning_rate`?"),
        (["train", "nowhere.yaml"], "config file not found"),
        (["export", "nowhere"], "is not a run"),
        (["chat", "nowhere"], "is not a run"),
        (["export"], "Missing argument 'RUN'"),
        (["train", "--colour"], "No such option"),
    ],
)
def test_a_wrong_request_is_one_message_and_exit_code_2(
    arguments: list[str], said: str, tmp_path: Path, command: Any
) -> None:
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_bad_data_is_exit_code_20_and_debug_shows_the_traceback(tmp_path: Path, command: Any) -> None:
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n{broken\n')
    arguments = ["train", "demo", "--set", "data.path=rows.jsonl"]
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 20
    assert "rows.jsonl:2" in done.stderr
    assert "Traceback" not in done.stderr
    debugged = _run("--debug", "data", *arguments[1:], cwd=tmp_path)
    assert debugged.returncode != 0 and "DataError" in debugged.stderr and "Traceback" in debugged.stderr


def test_presets_and_their_schema(tmp_path: Path) -> None:
    said = _run("presets")
    assert "llama3.1-8b-24gb" in said.stdout
    assert json.loads(_run("presets", "--schema").stdout)["properties"]["adapter"]


def test_doctor_ends_with_one_json_line(command: Any) -> None:
    done = command("doctor", "--json")
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["ready"] is (done.returncode == 0)
    assert {"Python", "torch", "NF4", "backend"} <= {finding["check"] for finding in report["findings"]}


def _summary(name: str) -> str:
    """The first sentence of a command's help."""
    return str(cli.commands[name].help).split("\n\n")[0].replace("\n", " ")


def test_help_groups_all_commands_and_cuts_off_no_summary() -> None:
    text = CliRunner(env={"COLUMNS": "80"}).invoke(cli, ["--help"]).output
    listed = [line.split(maxsplit=1) for line in text.split("Before training:")[1].splitlines() if line[:2] == "  "]
    assert dict(listed) == {name: _summary(name) for name in cli.commands}
    assert all(f"{heading}:" in text for heading in SECTIONS)
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_help_of_a_command_fits_80_columns_and_opens_with_its_summary(name: str) -> None:
    text = CliRunner(env={"COLUMNS": "80"}).invoke(cli, [name, "--help"]).output
    assert f"\n  {_summary(name)}\n" in text
    assert max(map(len, text.splitlines())) <= 80
