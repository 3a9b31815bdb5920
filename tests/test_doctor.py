"""The doctor finds what is wrong and names the fix."""

from __future__ import annotations

import pytest

from qdora_fast import doctor, hardware


def _found(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().out


def test_the_tested_environment_is_ready(capsys: pytest.CaptureFixture) -> None:
    assert doctor.examine() == 0
    said = _found(capsys)
    assert "ready to train" in said
    assert "bitsandbytes on the" in said


def test_the_pins_are_those_of_the_constraints_file() -> None:
    pins = doctor.tested_versions()
    assert pins["unsloth"] == "2026.10.9"
    assert pins["peft"].startswith("0.21")


def test_another_version_is_a_note_with_the_fix_and_a_missing_package_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(hardware, "package_versions", lambda: {"peft": "0.20.0", "trl": None, "triton": None})
    assert doctor.examine() == 1
    said = _found(capsys)
    assert 'pip install "peft==' in said
    assert "1 to mend before training" in said
    assert "only used on a GPU" in said


def test_a_gpu_that_torch_does_not_see_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    import torch

    monkeypatch.setattr(hardware, "gpus", lambda: [hardware.Gpu("RTX 4090", 24.0, (8, 9), "570.86")])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.examine() == 1
    said = _found(capsys)
    assert "RTX 4090, 24.0 GiB, compute capability 8.9" in said
    assert "does not see the GPU" in said
