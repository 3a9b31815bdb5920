"""A run's folder belongs to one process at a time, and a dead process holds nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qdora_fast.config.loader import make_config
from qdora_fast.config.recorded import create_run
from qdora_fast.recipes.evaluate import evaluate
from qdora_fast.recipes.export import export
from qdora_fast.system.errors import RunLocked
from qdora_fast.system.run_lock import in_use, locked

_HOLD = "import sys, time; from pathlib import Path; from qdora_fast.system.run_lock import locked\n"
_HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def _holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    process = _holder(tmp_path)
    try:
        assert in_use(tmp_path)
        said = rf"in use by process {process.pid} on .* \(since 20"
        with pytest.raises(RunLocked, match=said), locked(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    process = _holder(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not in_use(tmp_path)
    with locked(tmp_path):
        pass


def test_the_lock_is_given_back_after_an_error_and_says_nothing_more(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with locked(tmp_path):
        assert (tmp_path / ".lock.json").is_file()
    assert not (tmp_path / ".lock.json").exists()


def test_a_run_in_use_is_neither_evaluated_nor_exported_into(tmp_path: Path) -> None:
    config = make_config({"model": {"name": "demo"}, "data": {"path": "demo"}, "run": {"dir": str(tmp_path)}})
    run = create_run(config, "demo")
    process = _holder(run.path)
    try:
        with pytest.raises(RunLocked):
            evaluate(run)
        with pytest.raises(RunLocked):
            export(run)
    finally:
        process.kill()
        process.wait()
