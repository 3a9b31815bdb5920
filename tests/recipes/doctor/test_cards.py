"""Cards, drivers and torch builds of every kind, from what `nvidia-smi` and torch say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdora_fast.recipes.doctor import cards
from qdora_fast.recipes.doctor.cards import TorchBuild
from qdora_fast.system.hardware import Gpu
from qdora_fast.system.install import how_to_set_up

CARD = Gpu("NVIDIA GeForce RTX 4090", 24.0, (8, 9), "580.95.05")
CUDA = TorchBuild("2.13.0+cu130", "13.0", 1, ("sm_75", "sm_80", "sm_86", "sm_90", "sm_120"))
BANNER = "| NVIDIA-SMI {0}    Driver Version: {0}    CUDA Version: {1}     |"


def _driver(version: str, banner_cuda: str | None, built_for: str | None = "13.0"):
    banner = BANNER.format(version, banner_cuda) if banner_cuda else ""
    build = TorchBuild("2.13.0", built_for, 1)
    (finding,) = cards.driver([Gpu("L4", 22.5, (8, 9), version)], build, banner)
    return finding


def test_a_driver_older_than_torchs_cuda_version_needs_is_wrong_and_the_newer_one_is_named() -> None:
    finding = _driver("570.86.10", "12.8")
    assert finding.status == "wrong"
    assert finding.found == "too old: 570.86.10, knows CUDA up to 12.8; torch was built for 13.0"
    assert "580 or newer" in finding.fix


@pytest.mark.parametrize(
    ("version", "knows", "built_for", "status"),
    [
        ("580.95.05", "13.0", "13.0", "ok"),
        ("580.95.05", "13.0", "12.8", "ok"),
        ("580.95.05", "13.0", "13.2", "note"),
        ("535.104", "12.2", "12.8", "note"),
        ("470.57", "11.4", "12.8", "wrong"),
        ("470.57", None, "12.8", "wrong"),
        ("[N/A]", "12.2", "13.0", "wrong"),
        ("[N/A]", None, "13.0", "ok"),
        ("590.1", "13.1", "14.0", "wrong"),
        ("590.1", None, "14.0", "ok"),
        ("580.95.05", "13.0", None, "ok"),
    ],
)
def test_drivers_and_cuda_versions(version: str, knows: str | None, built_for: str | None, status: str) -> None:
    assert _driver(version, knows, built_for).status == status


def test_a_newer_banner_is_read_too() -> None:
    banner = "| NVIDIA-SMI 590.44  KMD Version: 590.44  CUDA UMD Version: 13.1 |"
    (finding,) = cards.driver([CARD], CUDA, banner)
    assert "knows CUDA up to 13.1" in finding.found


def test_torch_for_the_cpu_on_a_machine_with_a_gpu_is_wrong() -> None:
    (finding,) = cards.torch_sees([CARD], TorchBuild("2.13.0+cpu", None, 0))
    assert finding.status == "wrong"
    assert "does not see the GPU" in finding.found
    assert finding.fix == how_to_set_up(gpu=True)


def test_torch_for_cuda_that_sees_no_card_is_wrong() -> None:
    (finding,) = cards.torch_sees([CARD], TorchBuild("2.13.0+cu130", "13.0", 0))
    assert finding.status == "wrong"
    assert "CUDA_VISIBLE_DEVICES" in finding.fix


@pytest.mark.parametrize(
    ("capability", "status"), [((8, 9), "ok"), ((8, 0), "ok"), ((12, 0), "ok"), ((7, 0), "wrong"), ((10, 0), "wrong")]
)
def test_a_card_for_which_torch_has_no_code_is_wrong(capability: tuple[int, int], status: str) -> None:
    (finding,) = cards.torch_sees([Gpu("A card", 16.0, capability, "580.1")], CUDA)
    assert finding.status == status
    assert ("no machine code for the A card" in finding.found) is (status == "wrong")


def test_portable_code_serves_newer_cards() -> None:
    build = TorchBuild("2.13.0+cu130", "13.0", 1, ("sm_90a", "compute_90"))
    (finding,) = cards.torch_sees([Gpu("A card", 16.0, (12, 0), "580.1")], build)
    assert finding.status == "ok"


def test_torch_on_the_cpu_is_in_order_without_a_card_and_noted_when_only_nvidia_smi_is_missing() -> None:
    (plain,) = cards.torch_sees([], TorchBuild("2.13.0+cpu", None, 0))
    (odd,) = cards.torch_sees([], CUDA)
    assert (plain.status, odd.status) == ("ok", "note")
    assert "nvidia-smi" in odd.fix


@pytest.mark.parametrize(("capability", "status"), [((9, 0), "ok"), (None, "ok"), ((7, 5), "note"), ((6, 1), "wrong")])
def test_cards_too_old_for_bf16_and_for_unsloth(capability: tuple[int, int] | None, status: str) -> None:
    (finding,) = cards.cards([Gpu("A card", 16.0, capability, "580.1")], hidden=True)
    assert finding.status == status


def test_no_card_a_hidden_one_and_one_that_is_not_to_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("UNSLOTH_FORCE_CPU", raising=False)
    (none,) = cards.cards([], hidden=False)
    assert none.found.startswith("none; training runs on the CPU")
    (hidden,) = cards.cards([], hidden=True)
    assert "its driver does not answer" in hidden.found and "--gpus all" in hidden.fix
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    (unused,) = cards.cards([], hidden=True)
    assert unused.found.startswith("not used (CUDA_VISIBLE_DEVICES='-1')") and not unused.fix
    monkeypatch.setenv("UNSLOTH_FORCE_CPU", "1")
    (forced,) = cards.cards([], hidden=True)
    assert "UNSLOTH_FORCE_CPU=1" in forced.found


@pytest.mark.parametrize(
    ("vendor", "kind", "there"),
    [("0x10de", "0x030000", True), ("0x10de", "0x040300", False), ("0x1002", "0x030000", False)],
)
def test_a_card_without_a_driver_is_seen_on_the_bus(tmp_path: Path, vendor: str, kind: str, there: bool) -> None:
    device = tmp_path / "0000:01:00.0"
    device.mkdir()
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")
    assert cards.on_the_bus(tmp_path) is there
    assert not cards.on_the_bus(tmp_path / "missing")


def test_a_healthy_card_is_described() -> None:
    (finding,) = cards.health("0, 41, 450.00, 450.00, 210, 2520, 612, 0x0000000000000001\n")
    assert finding.status == "ok"
    assert (
        finding.found == "41 °C, power limit 450 W (usual 450), clock 210 of 2520 MHz (low when idle), 0.6 GiB in use"
    )


@pytest.mark.parametrize(
    ("answer", "worry", "fix"),
    [
        ("0, 91, 450.00, 450.00, 1200, 2520, 612, 0x0", "hot: from about 85 °C", "fans"),
        ("1, 41, 300.00, 450.00, 210, 2520, 612, 0x4", "capped at 300 of 450 W", "sudo nvidia-smi -i 1 -pl 450"),
        ("0, 41, 450.00, 450.00, 210, 2520, 9000, 0x0", "other programs hold 8.8 GiB", "nvidia-smi lists them"),
        ("0, 41, 450.00, 450.00, 210, 2520, 612, 0x0000000000000048", "hardware slowdown, heat (hardware)", "cooling"),
    ],
)
def test_heat_a_power_cap_other_programs_and_brakes_are_notes(answer: str, worry: str, fix: str) -> None:
    state, finding = cards.health(answer)
    assert (state.status, finding.status) == ("ok", "note")
    assert worry in finding.found and fix in finding.fix


def test_what_a_card_does_not_tell_is_left_out() -> None:
    (finding,) = cards.health("0, 35, [N/A], [N/A], 1200, [N/A], [N/A], [Not Supported]")
    assert (finding.status, finding.found) == ("ok", "35 °C, clock 1200 MHz (low when idle)")
    assert list(cards.health("")) == []
    assert list(cards.health('0, [N/A]\nField "x" is not a valid field to query.')) == []


@given(st.text() | st.lists(st.text(alphabet="0123456789.,x[]N/A \n")).map(", ".join))
def test_whatever_the_driver_answers_is_read_or_passed_over(answer: str) -> None:
    for finding in cards.health(answer):
        assert finding.found and finding.check.startswith("GPU")
    (finding,) = cards.driver([Gpu("A card", 16.0, (8, 9), answer)], CUDA, answer)
    assert finding.status in ("ok", "note", "wrong")


@pytest.mark.parametrize(("visible", "only"), [("1,2", "--id=1,2"), ("", None), ("GPU-5ab", None)])
def test_only_the_cards_of_this_process_are_asked(visible: str, only: str | None, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [part for part in cards.health_question() if part.startswith("--id")] == ([only] if only else [])


def test_without_a_driver_there_is_no_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cards.ask_driver("--help") == ""
