"""Commands in the process of the tests, where the libraries are loaded already."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qdora_fast.cli.main import main

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A function that runs `qdora-fast ARGUMENTS`, as a process of its own would, and gives what came of it."""

    def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["qdora-fast", *arguments])
            for stream in ("stdout", "stderr"):  # which the command wraps
                patch.setattr(sys, stream, getattr(sys, stream))
            patch.setenv("PYTHONSAFEPATH", os.environ.get("PYTHONSAFEPATH", ""))  # which it sets
            patch.chdir(cwd or Path.cwd())
            capsys.readouterr()
            code = 0
            try:
                main()
            except SystemExit as end:
                code = int(end.code or 0)
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, printed.out, printed.err)

    return run
