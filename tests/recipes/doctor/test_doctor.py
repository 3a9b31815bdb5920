"""The doctor as a whole: it finds what is wrong, names the fix, and comes to its end on any machine."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from qdora_fast.cli.main import cli
from qdora_fast.recipes.doctor import cards, examine, hub, machine, packages, selftest, stack
from qdora_fast.recipes.doctor.finding import Check, Finding, examined
from qdora_fast.system import hardware
from qdora_fast.system.install import how_to_set_up

LAZY = ("machine.python", "machine.disks", "packages.packages", "cards.torch_sees", "stack.nf4", "hub.hub")


def _page(capsys: pytest.CaptureFixture, *findings: Finding) -> str:
    examine.show(findings)
    return capsys.readouterr().out


def test_the_tested_environment_is_ready(capsys: pytest.CaptureFixture) -> None:
    assert examine.examine(offline=True) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1].startswith("ready to train")
    headings = [line for line in said.splitlines() if line and not line.startswith(" ")]
    assert headings[:-1] == ["Machine", "GPU", "Packages", "Training", "Models and data"]
    assert "bitsandbytes on the" in said
    assert "a fused DoRA layer computes as the reference does" in said


def test_json_is_one_object_with_every_finding_and_its_topic(capsys: pytest.CaptureFixture) -> None:
    code = examine.examine(as_json=True, offline=True)
    (line,) = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    assert report["ready"] is (code == 0)
    assert {"Python", "disk", "torch", "backend", "NF4", "Triton", "engine", "hub", "demo base"} <= {
        finding["check"] for finding in report["findings"]
    }
    assert all(finding["topic"] and finding["status"] in ("ok", "note", "wrong") for finding in report["findings"])


@pytest.mark.parametrize("code", [0, 1])
def test_the_command_hands_on_its_options_and_the_exit_code(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, bool] = {}
    monkeypatch.setattr(examine, "examine", lambda **how: asked.update(how) or code)
    done = CliRunner().invoke(cli, ["doctor", "--offline", "--json"])
    assert asked == {"as_json": True, "offline": True}
    assert done.exit_code == code


def test_the_pins_are_those_of_the_constraints_file() -> None:
    pins = packages.tested_versions()
    assert pins["unsloth"] == "2026.10.9"
    assert pins["peft"].startswith("0.21")
    assert pins["ruamel_yaml"]


def test_no_check_can_stop_the_doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise MemoryError("of a kind nobody foresaw")

    parts = {"machine": machine, "packages": packages, "cards": cards, "stack": stack, "hub": hub}
    for name in LAZY:
        module, function = name.split(".")
        monkeypatch.setattr(parts[module], function, broken)
    monkeypatch.setattr(selftest, "engine", broken)
    assert examine.examine(as_json=True, offline=True) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    hit = [finding for finding in findings if "could not be checked: MemoryError: of a kind" in finding["found"]]
    assert len(hit) == len(LAZY) + 1
    assert {finding["check"]: finding["status"] for finding in hit} == {
        "Python": "note",
        "disk": "note",
        "packages": "note",
        "torch": "wrong",
        "NF4": "wrong",
        "engine": "wrong",
        "hub": "note",
    }


def test_a_check_that_fails_half_way_keeps_what_it_had_found() -> None:
    def half():
        yield Finding("disk", "ok", "70 GiB free")
        raise PermissionError("the other disk")

    first, second = examined(Check("Machine", "disk", half))
    assert (first.found, first.topic) == ("70 GiB free", "Machine")
    assert (second.status, second.topic) == ("note", "Machine")
    assert "PermissionError: the other disk" in second.found


def test_a_gpu_without_a_torch_for_it_is_named_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: [hardware.Gpu("RTX 4090", 24.0, (8, 9), "570.86")])
    monkeypatch.setattr(packages, "packages", lambda gpu: [])
    monkeypatch.setattr(cards, "ask_driver", lambda *arguments: "")
    monkeypatch.setattr(cards, "torch_build", lambda: cards.TorchBuild("2.13.0+cpu", None, 0))
    assert examine.examine(offline=True) == 1
    said = capsys.readouterr().out
    assert "RTX 4090, 24.0 GiB, compute capability 8.9" in said
    assert "built for the CPU: it does not see the GPU" in said
    assert said.splitlines()[-1] == f"first, torch: {how_to_set_up(gpu=True)}"


def test_a_fix_is_printed_once_for_the_findings_it_mends(capsys: pytest.CaptureFixture) -> None:
    said = _page(
        capsys,
        Finding("trl", "wrong", "not installed", "pip install both", "Packages"),
        Finding("peft", "note", "0.20.0", "pip install both", "Packages"),
        Finding("GPU", "ok", "RTX 4090", topic="GPU"),
    )
    assert said.count("→ pip install both") == 1
    assert said.index("→") > said.index("0.20.0")
    assert said.endswith("1 to fix before training; 1 note to read\nfirst, trl: pip install both\n")


def test_what_is_found_is_printed_as_it_is(capsys: pytest.CaptureFixture) -> None:
    assert "[red]odd[/] folder [name]" in _page(
        capsys, Finding("disk", "ok", "[red]odd[/] folder [name]", topic="Machine")
    )


def test_a_line_is_printed_before_the_next_check_begins(capsys: pytest.CaptureFixture) -> None:
    def findings():
        yield Finding("Python", "ok", "3.11", topic="Machine")
        assert "3.11" in capsys.readouterr().out
        yield Finding("memory", "ok", "8 GiB", topic="Machine")

    assert len(examine.show(findings())) == 2
