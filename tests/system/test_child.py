"""Processes that this package starts find no module in the working directory, whatever lies there."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.data.process_tree import run_alone
from qdora_fast.exports.verify.checks import Case
from qdora_fast.exports.verify.fresh_process import examine_in_new_process
from qdora_fast.system import child

SHADOWS = ("random", "json", "torch", "typing", "multiprocessing", "qdora_fast")
"""What each process imports: of the standard library, of a library, of this package."""


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory full of files that are named as modules are and leave a mark when they are run."""
    for name in SHADOWS:
        mark = f"open({str(tmp_path / 'MARK')!r}, 'a').write({name!r})"
        (tmp_path / f"{name}.py").write_text(f"{mark}\nraise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _python(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(child.python(*arguments), env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [("-c", "import random, json, typing"), ("-m", "qdora_fast", "--version")])
def test_a_module_of_the_working_directory_is_not_found(sent: Path, arguments: tuple[str, ...]) -> None:
    done = _python(*arguments, environment=child.environment())
    assert done.returncode == 0, done.stderr
    assert not (sent / "MARK").exists()


def test_nor_by_the_processes_that_such_a_process_starts(sent: Path) -> None:
    again = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'import random']))"
    assert _python("-c", again, environment=child.environment()).returncode == 0
    spawned = (
        "import multiprocessing as m\n"
        "if __name__ == '__main__':\n"
        "    process = m.get_context('spawn').Process(target=print)\n"
        "    process.start(); process.join(); raise SystemExit(process.exitcode)\n"
    )
    (sent / "safe").mkdir()
    (sent / "safe" / "main.py").write_text(spawned)
    assert _python(str(sent / "safe" / "main.py"), environment=child.environment()).returncode == 0
    assert not (sent / "MARK").exists()


def test_the_users_own_path_for_modules_stays(tmp_path: Path) -> None:
    (tmp_path / "mine_alone.py").write_text("print('found')")
    environment = child.environment(PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert _python("-m", "mine_alone", environment=environment).stdout == "found\n"


def test_a_script_that_the_user_named_finds_the_modules_beside_it_under_any_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    (tmp_path / "beside.py").write_text("TEXT = 'found'")
    (tmp_path / "tool.py").write_text("import beside; print(beside.TEXT)")
    command = child.script(str(tmp_path / "tool.py"))
    done = subprocess.run(command, env=child.script_environment(), capture_output=True, text=True)
    assert done.stdout == "found\n", done.stderr


def test_a_command_protects_whatever_a_library_starts(sent: Path) -> None:
    script = (
        "import subprocess, sys; from qdora_fast.cli.main import main; sys.argv = ['qdora-fast', '--version']\n"
        "try: main()\nfinally: sys.exit(subprocess.call([sys.executable, '-c', 'import random']))"
    )
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    assert _python("-c", script, environment=bare).returncode == 0
    assert not (sent / "MARK").exists()


def test_a_script_that_is_measured_is_started_so(sent: Path) -> None:
    script = sent / "safe" / "measured.py"
    script.parent.mkdir()
    script.write_text("import random, json, sys; open(sys.argv[2], 'w').write(json.dumps({'a': 1}))")
    assert run_alone(script, {}, cache=sent)["a"] == 1
    assert not (sent / "MARK").exists()


def test_the_proof_of_an_export_is_started_so(sent: Path, right_case: Case) -> None:
    nowhere = replace(right_case, models=replace(right_case.models, exported=sent / "model"))
    (sent / "model").mkdir()
    proof = examine_in_new_process(nowhere)  # an empty folder: the process has started, and says so
    assert [check["name"] for check in proof["checks"]] == ["opens"] and not proof["passed"]
    assert not (sent / "MARK").exists()
