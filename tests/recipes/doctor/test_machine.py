"""Memory, disks and Windows' Linux."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from qdora_fast.recipes.doctor import machine
from qdora_fast.system import hardware

WSL = "Linux version 5.15.167.4-microsoft-standard-WSL2 (root@build) (gcc (GCC) 11.2.0) #1 SMP"
GIB = 2**30


def _places(tmp_path: Path) -> dict[str, Path]:
    return {"models": tmp_path / "hub", "runs": tmp_path, "cache": tmp_path / "not" / "yet"}


@pytest.mark.parametrize(("version", "status"), [((3, 10, 4), "wrong"), ((3, 11, 0), "ok"), ((3, 14, 0), "wrong")])
def test_python_versions(version: tuple[int, int, int], status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "version_info", version)
    assert [finding.status for finding in machine.python()] == [status]


def test_folders_of_one_disk_are_one_line_and_their_needs_add_up(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(hardware, "free_disk_gib", lambda folder: 30.0)
    (with_gpu,) = machine.disks(_places(tmp_path), gpu=True)
    (without,) = machine.disks(_places(tmp_path), gpu=False)
    assert (with_gpu.status, without.status) == ("note", "ok")
    assert with_gpu.found.startswith("30 GiB free for models (")
    assert "needs 37 GiB" in with_gpu.fix and "HF_HOME" in with_gpu.fix


def test_folders_of_different_disks_are_judged_apart(tmp_path: Path, monkeypatch) -> None:
    places = _places(tmp_path)
    places["models"].mkdir()
    monkeypatch.setattr(hardware, "free_disk_gib", lambda folder: 3.0 if folder == places["models"] else 500.0)
    stat = Path.stat
    there = lambda self, **how: SimpleNamespace(st_dev=7) if self == places["models"] else stat(self, **how)  # noqa: E731
    monkeypatch.setattr(Path, "stat", there)
    monkeypatch.setattr(Path, "exists", lambda self: os.path.lexists(self))
    models, others = machine.disks(places, gpu=True)
    assert (models.status, others.status) == ("note", "ok")
    assert "HF_HOME" in models.fix and "QDORA_FAST_CACHE" not in models.fix
    assert "runs" in others.found and "cache" in others.found


def test_a_full_disk_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "free_disk_gib", lambda folder: 0.3)
    (finding,) = machine.disks(_places(tmp_path), gpu=False)
    assert finding.status == "wrong"
    assert finding.found.startswith("full: 0.3 GiB free")
    assert "free some space, or set HF_HOME" in finding.fix


def test_a_folder_that_cannot_be_written_to_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "access", lambda path, mode: path != tmp_path)
    (tmp_path / "hub").mkdir()
    found = list(machine.disks({"models": tmp_path / "hub", "runs": tmp_path}, gpu=False))
    assert [finding.status for finding in found if "cannot be written to" in finding.found] == ["wrong"]
    assert found[-1].fix == "start from a folder on another disk, or set run.dir"


def test_short_memory_missing_swap_and_a_containers_limit_are_told(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=20 * GIB, total=64 * GIB))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=0))
    (plenty,) = machine.memory(gpu=True, limit_file=tmp_path / "missing")
    assert plenty.status == "ok" and "20.0 of 64.0 GiB free, swap 0.0 GiB" in plenty.found
    limit = tmp_path / "memory.max"
    limit.write_text("max\n")
    assert next(machine.memory(gpu=True, limit_file=limit)).status == "ok"
    limit.write_text(f"{4 * GIB}\n")
    (short,) = machine.memory(gpu=True, limit_file=limit)
    assert short.status == "note"
    assert "this container may use 4.0 GiB" in short.found and "add swap" in short.fix
    assert next(machine.memory(gpu=False, limit_file=limit)).status == "ok"


@pytest.mark.parametrize(("quota", "most"), [("max 100000", 16), ("250000 100000", 3), ("50000 100000", 1)])
def test_a_containers_share_of_time_counts_as_cores(quota: str, most: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(hardware, "cpu_count", lambda: 16)
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    assert machine.cores(file) == most
    assert machine.cores(tmp_path / "missing") == 16


def test_on_wsl_with_a_gpu_the_spill_and_the_pinned_memory_are_told() -> None:
    spill, pinned = machine.windows_linux(WSL, Path("/home/me/runs"), gpu=True)
    assert "spill into RAM and crawl" in spill.found
    assert "CUDA - Sysmem Fallback Policy: Prefer No Sysmem Fallback" in spill.fix
    assert "pinned" in pinned.found and ".wslconfig" in pinned.fix
    assert (spill.status, pinned.status) == ("note", "note")


def test_a_windows_disk_under_wsl_is_slow() -> None:
    *_, slow = machine.windows_linux(WSL, Path("/mnt/c/Users/me"), gpu=False)
    assert "is on a Windows disk" in slow.found
    assert len(list(machine.windows_linux(WSL, Path("/mnt/data"), gpu=False))) == 1


def test_a_plain_linux_has_nothing_to_say_about_windows(tmp_path: Path) -> None:
    assert list(machine.windows_linux("Linux version 6.8.0-45-generic", Path("/mnt/c/x"), gpu=True)) == []
    assert machine.proc_version(tmp_path / "missing") == ""
