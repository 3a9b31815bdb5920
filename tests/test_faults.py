"""The fault matrix in its smallest size is green, and red where our own code is broken on purpose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _faults(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "faults", "--folder", str(tmp_path / "left"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_one_trial_of_each_kind_passes(tmp_path: Path) -> None:
    done = _faults(tmp_path, "--trials", "1", "--seed", "1")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "left").exists()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_whatever_we_break_on_purpose_is_noticed(tmp_path: Path) -> None:
    done = _faults(tmp_path, "--sabotage", "all")
    assert done.returncode == 0, done.stdout
