"""The tool that puts faults into the code, on a project of three lines: what is killed, survives, or is stale."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mutants.listed import read_faults
from mutants.standing import MORE, standing_for

ROOT = Path(__file__).parent.parent
MODULE = "def double(x):\n    # twice\n    return 2 * x\n"
TEST = "from qdora_fast.small import double\n\n\ndef test_double():\n    assert double(3) == 6\n"
BROKEN = "\n\ndef test_that_fails_anyhow():\n    assert double(0) == 1\n"
FAULTS = {
    "harmless": ("# twice", "# two times"),
    "harmful": ("return 2 * x", "return 3 * x"),
    "stale": ("return 4 * x", "return 5 * x"),
    "endless": ("return 2 * x", "while x:\n        x += 1"),
    "unreadable": ("return 2 * x", "return ("),
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A package with one module, its test, and the list of faults."""
    files = (("qdora_fast", "__init__", ""), ("qdora_fast", "small", MODULE), ("tests", "test_small", TEST))
    for folder, name, text in files:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}.py").write_text(text)
    entries = [
        f"[[fault]]\nid = '{name}'\nfile = 'qdora_fast/small.py'\nold = '''{old}'''\nnew = '''{new}'''\nwhy = 'x'\n"
        for name, (old, new) in FAULTS.items()
    ]
    (tmp_path / "faults.toml").write_text("\n".join(entries))
    return tmp_path


def run(project: Path, *arguments: str) -> tuple[int, dict[str, tuple[str, str]], str]:
    """Exit code, outcome and witness of each fault, and all that was said."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mutants",
            "--root",
            str(project),
            "--list",
            str(project / "faults.toml"),
            "--results",
            str(project / "results.json"),
            "--jobs",
            "2",
            "--seconds",
            "6",
            *arguments,
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ") and "---" not in line]
    return done.returncode, {row[0][2:]: (row[1], row[3][:-2]) for row in rows[1:]}, done.stdout + done.stderr


def test_each_fault_is_told_by_what_comes_of_it(project: Path) -> None:
    code, found, said = run(project)
    assert code == 1, said
    assert {name: outcome for name, (outcome, _) in found.items()} == {
        "harmless": "survived",
        "harmful": "killed",
        "stale": "not applicable",
        "endless": "timeout",
        "unreadable": "killed",
    }, said
    assert found["harmful"][1] == "tests/test_small.py::test_double"
    assert "5 faults: " in said and "2 killed" in said
    assert (project / "qdora_fast" / "small.py").read_text() == MODULE
    assert not list(project.rglob("__pycache__"))


def test_a_known_result_holds_until_a_test_changes(project: Path) -> None:
    assert run(project, "--only", "harmful")[:2] == (0, {"harmful": ("killed", "tests/test_small.py::test_double")})
    results = project / "results.json"
    kept = json.loads(results.read_text())
    results.write_text(json.dumps([{**entry, "by": "known"} for entry in kept]))
    assert run(project, "--only", "harmful")[1] == {"harmful": ("killed", "known")}
    (project / "tests" / "test_small.py").write_text(TEST.replace("== 6", "> 0"))
    assert run(project, "--only", "harmful")[:2] == (1, {"harmful": ("survived", "x")})


def test_a_test_that_fails_without_the_fault_kills_nothing(project: Path) -> None:
    (project / "tests" / "test_small.py").write_text(TEST.splitlines()[0] + BROKEN)
    code, found, said = run(project, "--only", "harmful")
    assert (code, found["harmful"][0]) == (1, "unsound"), said


def test_a_fault_that_nobody_can_observe_says_why(project: Path) -> None:
    listed = project / "faults.toml"
    listed.write_text(listed.read_text() + "equivalent = 'x'\n")  # the last one: unreadable
    listed.write_text(listed.read_text().replace("why = 'x'", "why = 'x'\nequivalent = 'a comment'", 1))
    code, found, said = run(project, "--only", "harmless")
    assert (code, found) == (0, {"harmless": ("equivalent", "a comment")}), said
    code, found, _ = run(project, "--only", "unreadable")
    assert code == 1 and "said to be equivalent" in found["unreadable"][0]


def test_the_list_stands_for_the_code_as_it_is() -> None:
    """Each entry's text is there exactly once, and tests stand for its module."""
    faults = read_faults(ROOT / "mutants" / "faults.toml")
    assert [fault.id for fault in faults if not fault.applies(ROOT)] == []
    assert [fault.id for fault in faults if not standing_for(fault.file, ROOT)] == []
    assert len(faults) >= 130 and max(Counter(fault.id for fault in faults).values()) == 1
    missing = [path for paths in MORE.values() for path in paths if not (ROOT / f"tests/{path}.py").exists()]
    assert not missing
