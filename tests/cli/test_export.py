"""Exports as a user asks for them, in a process of its own."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from qdora_fast.system.run_folder import RunFolder


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from qdora_fast.cli.main import main; main()", *arguments]


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("UNSLOTH_")}


def _run(*arguments: str, cwd: Path | None = None, answer: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(*arguments), capture_output=True, text=True, cwd=cwd, input=answer, env=_environment()
    )


def test_exporting_the_demo_run(own_demo_run: RunFolder, tmp_path: Path, command: Any) -> None:
    refused = command("export", str(own_demo_run.path), "--to", "lora")
    assert refused.returncode == 2
    assert "drops the magnitude vectors" in refused.stderr
    assert "`--to merged_16bit`" in refused.stderr

    out = tmp_path / "merged"
    done = _run("export", str(own_demo_run.path), "--merge-base", "dequant4", "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {"format", "path", "proof", "merge_base", "peak_rss_bytes", "seconds"} <= set(report)
    assert report["proof"]["passed"]
    assert report["proof"]["top1"] > 0.99


def test_a_format_that_loses_something_is_asked_for_twice(demo_run: RunFolder) -> None:
    command = ("export", str(demo_run.path), "--to", "merged_4bit_forced")
    refused = _run(*command)
    assert refused.returncode == 2
    assert "rounds the merged weights to 4 bits" in refused.stderr and "add --yes" in refused.stderr

    leader, terminal = pty.openpty()
    os.write(leader, b"n\n")
    told = subprocess.run(_command(*command), stdin=terminal, capture_output=True, text=True, env=_environment())
    assert told.returncode == 2
    assert "Write it? [y/N]" in told.stderr and "nothing was written" in told.stderr
    assert not (demo_run.path / "merged_4bit_forced").exists()


def test_an_adapter_without_magnitudes_is_exit_code_41(demo_run: RunFolder, tmp_path: Path, command: Any) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "lossy"
    folder.mkdir()
    shutil.copyfile(demo_run.adapter / "adapter_config.json", folder / "adapter_config.json")
    kept = {k: v for k, v in load_file(demo_run.adapter / "adapter_model.safetensors").items() if "magnitude" not in k}
    save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    done = command("import-adapter", str(folder))
    assert done.returncode == 41
    assert "without any magnitude" in done.stderr and "Traceback" not in done.stderr


def test_gguf_commands_are_the_result_and_json_the_last_line(demo_run: RunFolder, tmp_path: Path, command: Any) -> None:
    done = command("export", str(demo_run.path), "--to", "gguf", "--out", str(tmp_path / "g"), "--json")
    assert done.returncode == 0, done.stderr
    *commands, last = done.stdout.splitlines()
    assert json.loads(last)["made"] is False and json.loads(last)["commands"] == commands
    assert any("convert_hf_to_gguf.py" in line for line in commands)
