"""Packages against the accepted and the tested versions, and the one command that mends them."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdora_fast.recipes.doctor import packages as module
from qdora_fast.recipes.doctor.finding import Finding
from qdora_fast.recipes.doctor.packages import packages
from qdora_fast.system import install
from qdora_fast.system.install import how_to_set_up


def _tested(**changed: str | None) -> dict[str, str]:
    """Every pinned package as pinned, but for those given; None: not installed."""
    installed: dict[str, str | None] = {**module.tested_versions(), **changed}
    return {name: version for name, version in installed.items() if version is not None}


def _odd(found: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in found if finding.status != "ok"}


@pytest.mark.parametrize("gpu", [False, True])
def test_the_tested_set_is_in_order(gpu: bool) -> None:
    found = list(packages(gpu=gpu, installed=_tested()))
    assert not _odd(found)
    same, total = found[0].found.split()[0:3:2]
    assert same == total


def test_a_build_for_the_cpu_or_a_cuda_version_is_the_tested_version() -> None:
    assert not _odd(list(packages(gpu=True, installed=_tested(torch="2.13.0+cu130"))))


def test_all_that_differ_are_mended_by_one_command() -> None:
    found = _odd(list(packages(gpu=True, installed=_tested(peft="0.21.0", trl=None, idna="3.9"))))
    assert set(found) == {"peft", "trl", "others", "tested set"}
    assert found["trl"].status == "wrong"
    assert (found["peft"].status, found["others"].status) == ("note", "note")
    assert "idna 3.9 (tested 3.20)" in found["others"].found
    (fix,) = {finding.fix for finding in found.values()}
    assert fix.count("pip install") == 1
    assert '"trl==1.15.0" "peft==0.21.2" "idna==3.20"' in fix
    assert "-c constraints.txt" in fix


def test_a_version_outside_what_is_accepted_is_wrong() -> None:
    found = _odd(list(packages(gpu=False, installed=_tested(peft="0.20.0"))))
    assert found["peft"].status == "wrong"
    assert found["peft"].found == "0.20.0, tested with 0.21.2; accepted is >=0.21,<0.22"


def test_without_a_gpu_unsloth_comes_without_its_requirements() -> None:
    found = _odd(list(packages(gpu=False, installed=_tested(unsloth="2026.9.1", peft="0.21.0"))))
    first, second = found["unsloth"].fix.split(" && ")
    assert first.endswith('"peft==0.21.2"')
    assert second.endswith('pip install --no-deps "unsloth==2026.10.9"')


def test_another_torch_is_a_matter_for_the_makefile() -> None:
    found = _odd(list(packages(gpu=True, installed=_tested(torch="2.12.0+cu128"))))
    assert found["torch"].fix == how_to_set_up(gpu=True)
    found = _odd(list(packages(gpu=False, installed=_tested(torch="2.12.0+cpu"))))
    assert found["torch"].fix == how_to_set_up(gpu=False)


@pytest.mark.parametrize("package", ["triton", "unsloth_zoo"])
def test_what_only_a_gpu_needs_is_missed_only_there(package: str) -> None:
    missing = _tested(**{package: None})
    assert _odd(list(packages(gpu=True, installed=missing)))[package].status == "wrong"
    assert (package in _odd(list(packages(gpu=False, installed=missing)))) is (package != "triton")


def test_a_set_up_for_the_cpu_on_a_machine_with_a_gpu_is_made_anew() -> None:
    found = _odd(list(packages(gpu=True, installed=_tested(xformers=None, triton=None, peft="0.21.0"))))
    assert {finding.fix for finding in found.values()} == {how_to_set_up(gpu=True)}


def test_tools_for_working_on_the_package_are_passed_over() -> None:
    assert not _odd(list(packages(gpu=False, installed=_tested(ruff="0.1.0", pytest="7.0.0", mypy=None))))


def test_a_missing_constraints_file_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = _tested()
    monkeypatch.setattr(install, "constraints_file", lambda: None)
    found = list(packages(gpu=False, installed=everything))
    assert "cannot be compared" in found[-1].found
    assert module.tested_versions() == {}


def test_the_installed_distributions_are_read_and_a_broken_one_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half-1.0.dist-info").mkdir()  # what an interrupted removal leaves: a folder without METADATA
    peft = tmp_path / "peft-0.1.0.dist-info"
    peft.mkdir()
    (peft / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = _odd(list(packages(gpu=False)))
    assert found["peft"].found.startswith("0.1.0, tested with")


def test_without_a_checkout_the_installed_description_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    described = [
        "torch<2.15,>=2.11",
        "colorama; sys_platform == 'win32'",
        "tyro; extra == 'cpu'",
        "unsloth>=2026.10.9; extra == 'gpu'",
        "ruff; extra == 'dev'",
    ]
    monkeypatch.setattr(module, "_PACKAGE", Path("/nowhere/qdora_fast"))
    monkeypatch.setattr(module.importlib.metadata, "requires", lambda name: described)
    monkeypatch.setattr(install, "constraints_file", lambda: None)
    there = dict.fromkeys(("unsloth", "unsloth_zoo", "torch"), "1.0")
    on_a_cpu = _odd(list(packages(gpu=False, installed=there)))
    on_a_gpu = _odd(list(packages(gpu=True, installed=there)))
    assert on_a_cpu["torch"].found == "1.0, tested with any; accepted is >=2.11,<2.15"
    assert "tyro" in on_a_cpu and "tyro" not in on_a_gpu
    assert on_a_gpu["unsloth"].status == "wrong" and "unsloth" not in on_a_cpu
    assert not {"ruff", "colorama"} & {*on_a_cpu, *on_a_gpu}
