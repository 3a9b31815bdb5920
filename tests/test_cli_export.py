"""Exports as a user asks for them, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from qdora_fast.run_folder import RunFolder


def _run(*arguments: str, cwd: Path | None = None, answer: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from qdora_fast.cli import main; main()", *arguments]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UNSLOTH_")}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, input=answer, env=environment)


def test_exporting_the_demo_run(own_demo_run: RunFolder, tmp_path: Path) -> None:
    refused = _run("export", str(own_demo_run.path), "--to", "lora")
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
