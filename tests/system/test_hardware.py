"""The machine is described from what it answers; what it does not answer is unknown."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from qdora_fast.system import hardware


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put an `nvidia-smi` with a given answer first on PATH."""

    def answer(text: str, code: int = 0) -> None:
        script = tmp_path / "nvidia-smi"
        script.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("UNSLOTH_FORCE_CPU", raising=False)
    return answer


TWO = "NVIDIA GeForce RTX 4090, 24564, 8.9, 570.86\nNVIDIA L4, 23034, 8.9, 570.86"


def test_cards_are_read_from_the_driver(driver) -> None:
    driver(TWO)
    first, second = hardware.gpus()
    assert (first.name, round(first.memory_gib, 1), first.compute_capability) == (
        "NVIDIA GeForce RTX 4090",
        24.0,
        (8, 9),
    )
    assert round(second.memory_gib, 1) == 22.5


def test_visible_devices_are_respected(driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [card.name for card in hardware.gpus()] == ["NVIDIA L4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert hardware.gpus() == []


@pytest.mark.parametrize(("text", "code"), [("", 9), ("No devices were found", 0), ("GPU, [N/A], 9.0, 1", 0), ("", 0)])
def test_no_answer_means_no_card(driver, text: str, code: int) -> None:
    driver(text, code)
    assert hardware.gpus() == []


def test_an_unknown_capability_stays_unknown(driver) -> None:
    driver("Some Card, 24564, [N/A], 570.86")
    assert hardware.gpus()[0].compute_capability is None


def test_the_description_is_json_and_names_the_packages() -> None:
    described = json.loads(json.dumps(hardware.describe()))
    assert described["packages"]["torch"]
    assert described["cpu_cores"] >= 1


def test_free_disk_is_asked_of_the_nearest_existing_folder(tmp_path: Path) -> None:
    assert hardware.free_disk_gib(tmp_path / "not" / "yet") == pytest.approx(hardware.free_disk_gib(tmp_path), rel=0.1)


def test_the_cache_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QDORA_FAST_CACHE", str(tmp_path / "c"))
    assert hardware.cache_folder() == tmp_path / "c"


def test_what_holds_the_clocks_down_is_told_and_idleness_is_not(driver) -> None:
    driver("0x0000000000000060\n0x0000000000000001")
    assert hardware.clock_brakes() == ["heat (driver)", "heat (hardware)"]
    driver("[N/A]")
    assert hardware.clock_brakes() == []
    driver("", code=9)
    assert hardware.clock_brakes() == []
