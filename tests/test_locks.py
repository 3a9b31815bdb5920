"""What the set-up installs is named by hash, in the tested versions, and another file stops it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "locks").glob("*.txt"))
OUTSIDE = {"torch"}  # on the CPU
NOT_PINNED = ("cuda-", "nvidia-")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def _entries(path: Path) -> list[tuple[Requirement, list[str]]]:
    lines = path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    split = [line.split(" --", 1) for line in lines if not line.startswith("#")]
    return [(Requirement(need.strip()), ("--" + hashes[0]).split() if hashes else []) for need, *hashes in split]


def _names(*files: str) -> set[str]:
    return {canonicalize_name(need.name) for file in files for need, _ in _entries(ROOT / "locks" / file)}


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def test_the_locks_and_constraints_name_the_same_versions() -> None:
    entries = [(canonicalize_name(need.name), str(need.specifier)) for path in FILES for need, _ in _entries(path)]
    pinned = {name: f"=={version}" for name, version in _pins().items()}
    assert not pinned.keys() - dict(entries).keys(), "make lock"
    assert all(name.startswith(NOT_PINNED) or pinned.get(name) == version for name, version in entries), "make lock"
    asked = ["make", "--silent", "--eval", "torch: ; @echo $(TORCH)", "torch"]
    said = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.strip() == _pins()["torch"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_entry_is_one_version_with_hashes_and_no_address(path: Path) -> None:
    assert "://" not in path.read_text(encoding="utf-8")
    entries = _entries(path)
    assert len({need.name for need, _ in entries}) == len(entries) > 0
    for need, hashes in entries:
        assert re.fullmatch(r"==[\w.]+", str(need.specifier)) and not need.url, need
        assert hashes and all(HASH.fullmatch(each) for each in hashes), need
        assert len(set(hashes)) == len(hashes), need


@pytest.mark.parametrize("together", [("base.txt", "gpu.txt", "docs.txt"), ("base.txt", "dev.txt", "docs.txt")])
def test_no_package_is_in_two_of_the_files_that_are_installed_together(together: tuple[str, ...]) -> None:
    assert sum(len(_entries(ROOT / "locks" / file)) for file in together) == len(_names(*together))


def test_a_package_in_two_files_is_the_same_release_in_both() -> None:
    """build.txt and dev.txt are installed by commands of their own, and may name what others name."""
    seen: dict[str, tuple[Requirement, list[str]]] = {}
    for path in FILES:
        for need, hashes in _entries(path):
            assert seen.setdefault(canonicalize_name(need.name), (need, hashes)) == (need, hashes), path.name


def test_what_builds_the_documentation_is_locked_apart() -> None:
    needs = [Requirement(text) for text in importlib.metadata.requires("qdora_fast") or []]
    docs = [need for need in needs if need.marker and need.marker.evaluate({"extra": "docs"})]
    assert docs and {canonicalize_name(need.name) for need in docs} <= _names("docs.txt")


def test_nothing_that_is_needed_here_is_missing() -> None:
    locked, seen = _names("build.txt", "base.txt", "dev.txt") | OUTSIDE, set()
    todo = [("qdora_fast", "cpu"), ("qdora_fast", "dev"), ("torch", "")]
    while todo:
        name, extra = todo.pop()
        seen.add((name, extra))
        for text in importlib.metadata.requires(name) or []:
            need = Requirement(text)
            if need.marker and not need.marker.evaluate({"extra": extra}):
                continue
            plain = canonicalize_name(need.name)
            if plain.startswith(NOT_PINNED):
                continue  # a CUDA build of torch
            assert plain in locked | {"qdora-fast"}, f"{name} needs {need}: make lock"
            todo += [(plain, each) for each in ("", *need.extras) if (plain, each) not in seen]
    assert {("transformers", "serving"), ("peft", ""), ("torch", "")} <= seen


@pytest.mark.parametrize("right", [True, False], ids=["the tested file", "another file"])
def test_another_file_than_the_tested_one_stops_the_set_up(right: bool, tmp_path: Path) -> None:
    pytest.importorskip("pip")
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as parts:
        parts.writestr("tiny.py", "")
        parts.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        parts.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        parts.writestr("tiny-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes() if right else b"what was tested").hexdigest()
    (tmp_path / "locks").mkdir()
    for file in ("build.txt", "base.txt", "dev.txt", "uv.txt"):
        (tmp_path / "locks" / file).write_text(f"tiny==1.0 --hash=sha256:{digest}\n")
    for file in ("pyproject.toml", "constraints.txt"):
        (tmp_path / file).touch()
    shutil.copy(ROOT / "Makefile", tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"  # pip of this Python, installing into a folder of its own
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    own = {"PIP_TARGET": f"{tmp_path}/target", "PIP_FIND_LINKS": str(tmp_path), "PIP_NO_INDEX": "1"}
    done = subprocess.run(
        ["make", "install", "PROFILE=cpu", "HASHES=on"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, **own, "PIP_CONFIG_FILE": os.devnull, "MAKEFLAGS": ""},
        check=False,
    )
    assert done.returncode != 0  # with the right file it ends at torch: there is none in that folder
    assert (tmp_path / "target" / "tiny.py").is_file() is right
    assert ("THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr) is not right
    assert ("make install HASHES=off" in done.stdout) is not right
    assert not list(python.parent.parent.glob("installed-*"))


# What uv prints, in small: a package for all, one for x86_64 alone, one for another system, and what follows torch.
RESOLVED = """\
numpy==2.4.6 ; sys_platform == 'linux' and python_full_version < '3.14' \\
    --hash=sha256:bb \\
    --hash=sha256:aa
torch==2.13.0 \\
    --hash=sha256:cc
nvidia-cublas==13.1 \\
    --hash=sha256:dd
xformers==0.0.35 ; python_full_version < '3.14' and platform_machine == 'x86_64' \\
    --hash=sha256:ee
colorama==0.4.6 ; sys_platform == 'win32' \\
    --hash=sha256:ff
"""


@pytest.fixture
def make_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = importlib.import_module("locks.make_locks")
    (tmp_path / "pyproject.toml").write_text('[build-system]\nrequires = ["hatchling"]\n')
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "HERE", tmp_path)

    def resolved(command: list[str], *, input: str, **how: Any) -> subprocess.CompletedProcess:
        named = [f"{name}==1.0 \\\n    --hash=sha256:00" for name in input.splitlines()]
        return subprocess.CompletedProcess(command, 0, stdout="\n".join(named) if named else RESOLVED, stderr="")

    monkeypatch.setattr(module.subprocess, "run", resolved)
    return module


def test_the_locks_keep_torch_apart_and_only_the_conditions_that_matter(make_locks: ModuleType, tmp_path: Path) -> None:
    pins = "numpy==2.4.6 torch==2.13.0 xformers==0.0.35 unsloth==1.0 unsloth_zoo==1.0 hatchling==1.0 editables==1.0"
    (tmp_path / "constraints.txt").write_text("\n".join([*pins.split(), "setuptools==1.0", "uv==1.0"]))
    assert make_locks.main() == 0
    base, gpu = ((tmp_path / file).read_text(encoding="utf-8") for file in ("base.txt", "gpu.txt"))
    assert "numpy==2.4.6 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n" in base
    assert "torch" not in base.split("\n", 2)[2] and "nvidia" not in base and "colorama" not in base
    assert "torch==2.13.0 \\" in gpu and "nvidia-cublas==13.1 \\" in gpu and "numpy" not in gpu
    assert 'xformers==0.0.35; platform_machine == "x86_64" \\' in base + gpu


def test_a_package_that_is_needed_and_not_pinned_is_named(
    make_locks: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\nxformers==0.0.35\n")
    assert make_locks.main() == 1
    said = capsys.readouterr().out
    assert "numpy==2.4.6" in said and "not in constraints.txt" in said
    assert "nvidia" not in said
    assert not list(tmp_path.glob("base.txt"))


REFUSED = """\
error: No solution found when resolving dependencies for split (markers: sys_platform == 'linux')
  cause: Because qdora-fast depends on torch==2.15.0 and torch>=2.11,<2.14 and unsloth==1.0 depends on
torch<2.15.0,>=2.4.0, we can conclude that your requirements are unsatisfiable.
"""
TABLE = (
    "numpy==2.4.6 ; python_version < '3.12'\nnumpy==2.5.0 ; python_version >= '3.12'\nzipp==4.0\nnvidia-x==1\ntorch=="
)


@pytest.fixture
def newest(make_locks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = importlib.import_module("locks.newest")
    (tmp_path / "constraints.txt").write_text("# tested\nnumpy==2.4.0\ntorch==2.12.0\nold_one==1.0\n")

    def asked(names: Any, *options: str) -> subprocess.CompletedProcess:
        if "torch==2.15.0" in names:
            return subprocess.CompletedProcess([], 1, stdout="", stderr=REFUSED)
        last = "2.15.0" if "--no-deps" in options else "2.13.0"
        return subprocess.CompletedProcess([], 0, stdout=f"{TABLE}{last}\n", stderr="")

    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "asked", asked)
    return module


def test_the_newest_that_resolves_is_written_and_what_holds_the_rest_is_named(
    newest: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert newest.main() == 0
    written = (tmp_path / "constraints.txt").read_text().splitlines()
    assert written == ["# tested", "numpy==2.4.6", "torch==2.13.0", "zipp==4.0"]  # numpy: for every Python
    said = capsys.readouterr().out
    moves = {tuple(line.split()) for line in said.splitlines() if "->" in line}
    assert moves >= {("torch", "2.12.0", "->", "2.13.0"), ("zipp", "-", "->", "4.0"), ("old-one", "1.0", "->", "-")}
    assert "torch 2.13.0, newest 2.15.0: pyproject.toml takes >=2.11,<2.14; unsloth==1.0 takes <2.15.0,>=2.4.0" in said


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        ("error: Failed to fetch: `https://x/simple/torch/`\n  cause: dns error", "got no answer from the index"),
        ("error: No solution found when resolving dependencies", "finds no set of packages"),
    ],
)
def test_without_an_answer_nothing_is_written(
    stderr: str, message: str, newest: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (tmp_path / "constraints.txt").read_text()
    answer = subprocess.CompletedProcess([], 2, stdout="", stderr=stderr)
    monkeypatch.setattr(newest, "asked", lambda *arguments: answer)
    with pytest.raises(SystemExit, match=message):
        newest.main()
    assert (tmp_path / "constraints.txt").read_text() == before
