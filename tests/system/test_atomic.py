"""Folders, and files, that appear whole or not at all."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from qdora_fast.system.atomic import MARK, discard, publish, require_space, staged_file, staged_folder
from qdora_fast.system.errors import ConfigError, DiskSpaceError
from qdora_fast.system.manifest import read_manifest, write_manifest


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_who_may_list_a_folder_may_read_its_files(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "shared") as staging:
        save_file({"a": torch.zeros(2)}, staging / "a.safetensors")
        staging.chmod(0o755)
    assert (tmp_path / "shared/a.safetensors").stat().st_mode & 0o777 == 0o644
    with staged_folder(tmp_path / "own") as staging:
        save_file({"a": torch.zeros(2)}, staging / "a.safetensors")
        (staging / "run.sh").touch(0o700)
        staging.chmod(0o700)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "own").iterdir()}
    assert modes == {"a.safetensors": 0o600, "run.sh": 0o700}


def _dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def _own(folder: Path) -> Path:
    """A folder of the user's own, whatever its name."""
    folder.mkdir()
    (folder / "thesis.txt").write_text("three years")
    return folder


@pytest.mark.parametrize("ending", ["incomplete", "replaced"])
def test_a_folder_of_ones_own_under_a_passing_name_stays(tmp_path: Path, ending: str) -> None:
    own = _own(tmp_path / f"out.{ending}")
    for text in ("old", "new"):
        with staged_folder(tmp_path / "out", overwrite=True) as folder:
            (folder / "a").write_text(text)
    assert names(tmp_path) == ["out", own.name] and names(own) == ["thesis.txt"]
    assert (tmp_path / "out/a").read_text() == "new" and names(tmp_path / "out") == ["a"]


def test_a_link_under_a_passing_name_is_not_followed(tmp_path: Path) -> None:
    own = _own(tmp_path / "own")
    (own / MARK).write_text(f"{_dead()} 1.00")
    for ending in ("incomplete", "replaced"):
        (tmp_path / f"out.{ending}").symlink_to(own)
    for _ in range(2):
        with staged_folder(tmp_path / "out", overwrite=True) as folder:
            (folder / "a").write_text("")
    assert names(own) == [MARK, "thesis.txt"] and names(tmp_path / "out") == ["a"]


def test_a_checkpoint_beside_somebody_elses_folder_is_removed_alone(tmp_path: Path) -> None:
    own = _own(tmp_path / "checkpoint-3.removed")
    (tmp_path / "checkpoint-3").mkdir()
    discard(tmp_path / "checkpoint-3")
    assert names(tmp_path) == [own.name] and names(own) == ["thesis.txt"]


def test_what_another_process_builds_is_not_touched(tmp_path: Path) -> None:
    theirs = tmp_path / "out.incomplete"
    theirs.mkdir()
    (theirs / MARK).write_text(f"{os.getppid()} {psutil.Process(os.getppid()).create_time():.2f}")
    with staged_folder(tmp_path / "out") as folder:
        assert folder != theirs
    assert names(theirs) == [MARK] and names(tmp_path / "out") == []


@pytest.mark.parametrize("started", [1.0, None])
def test_a_process_that_has_ended_owns_nothing(tmp_path: Path, started: float | None) -> None:
    """Its id may belong to another process by now, or to what is left of it until its parent looks."""
    child = subprocess.Popen(["sleep", "60"])
    born = started or psutil.Process(child.pid).create_time()
    if started is None:
        child.kill()
        while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
            pass
    theirs = tmp_path / "out.incomplete"
    theirs.mkdir()
    (theirs / MARK).write_text(f"{child.pid} {born:.2f}")
    with staged_folder(tmp_path / "out") as folder:
        assert folder == theirs
    child.kill()
    child.wait()


def test_no_mark_stays_in_what_is_published(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out") as folder:
        write_manifest(folder, {})
    assert MARK not in names(tmp_path / "out") and not read_manifest(tmp_path / "out")["files"]
    (tmp_path / "unproven").mkdir()
    publish(tmp_path / "unproven", tmp_path / "proven")
    assert names(tmp_path) == ["out", "proven"]


def test_it_appears_at_the_end(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "deep" / "out") as folder:
        (folder / "a").write_text("1")
        (folder / "sub").mkdir()
        (folder / "sub" / "b").write_text("2")
        assert names(tmp_path / "deep") == ["out.incomplete"]
    assert names(tmp_path / "deep") == ["out"]
    assert (tmp_path / "deep/out/sub/b").read_text() == "2"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    with staged_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("old")
    with pytest.raises(error), staged_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "a").write_text("new")
        raise error
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out/a").read_text() == "old"


def test_replacing_needs_to_be_asked_for(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out.incomplete").mkdir()
    (tmp_path / "out.incomplete" / "stale").write_text("from a killed process")
    (tmp_path / "out.incomplete" / MARK).write_text(f"{_dead()} 1.00")
    with pytest.raises(ConfigError, match="already exists"), staged_folder(tmp_path / "out"):
        raise AssertionError("must not get here")
    with staged_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").write_text("")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["new"]


def test_a_file_takes_the_place_of_an_older_one_when_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "scores.npy"
    for text in ("old", "new"):
        with staged_file(out) as unfinished:
            unfinished.write_text(text)
            assert not out.exists() or out.read_text() == "old"
    assert names(tmp_path) == ["scores.npy"] and out.read_text() == "new"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_file_that_failed_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "out").write_text("old")
    with pytest.raises(error), staged_file(tmp_path / "out") as unfinished:
        unfinished.write_text("ne")
        raise error
    assert names(tmp_path) == ["out"] and (tmp_path / "out").read_text() == "old"


def test_space_is_asked_where_the_folder_will_be(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "yet" / "there", 1)
    with pytest.raises(DiskSpaceError, match=r"are needed, .* are free on that disk"):
        require_space(tmp_path / "not" / "yet" / "there", 10**18)
