"""The reference is what the code says: pages that are written from it are current, those written by hand agree."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from documents import DOCS

import qdora_fast
from docs.make_reference import PAGES, REFERENCE
from qdora_fast.cli.main import cli
from qdora_fast.config import Config
from qdora_fast.config.presets import list_presets
from qdora_fast.recipes.doctor.finding import Finding
from qdora_fast.system.errors import QdoraError
from qdora_fast.system.run_folder import RunFolder

SETTINGS = (REFERENCE / "settings.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_written_pages_are_current(name: str) -> None:
    written = (REFERENCE / name).read_text(encoding="utf-8")
    assert written == PAGES[name](), "run `python -m docs.make_reference` (or `make docs`) and commit docs/reference"


def test_every_setting_has_a_line() -> None:
    def settings(section: type, path: str = "") -> set[str]:
        names: set[str] = set()
        for name, field in section.model_fields.items():
            inner = field.annotation if hasattr(field.annotation, "model_fields") else None
            names |= settings(inner, f"{path}{name}.") if inner else {f"{path}{name}"}
        return names

    listed = {
        f"{heading}.{name}"
        for heading, text in re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", SETTINGS, flags=re.M | re.S)
        for name in re.findall(r"^\| `(\w+)` ", text, flags=re.M)
    }
    assert settings(Config) <= listed


def test_every_command_and_option_has_a_line() -> None:
    page = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    for name, command in cli.commands.items():
        text = page.split(f"\n## qdora-fast {name}\n")[1].split("\n## ")[0]
        flags = {flag for parameter in command.params for flag in parameter.opts if flag.startswith("--")}
        assert not [flag for flag in flags if flag not in text], name


def test_every_preset_is_listed() -> None:
    for page in (REFERENCE / "presets.md", DOCS / "guides" / "choosing-settings.md"):
        text = page.read_text(encoding="utf-8")
        assert not [preset.name for preset in list_presets() if f"`{preset.name}`" not in text], page.name


def test_every_exit_code_is_listed() -> None:
    def kinds(kind: type[QdoraError]) -> list[type[QdoraError]]:
        return [kind, *(child for each in kind.__subclasses__() for child in kinds(each))]

    page = (REFERENCE / "exit-codes.md").read_text(encoding="utf-8")
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", page, flags=re.M)}
    assert {0, 75, 130} | {kind.exit_code for kind in kinds(QdoraError)} <= codes


def test_the_python_page_has_every_public_name() -> None:
    page = (REFERENCE / "python-api.md").read_text(encoding="utf-8")
    named = set()
    for path in re.findall(r"^::: (\S+)$", page, flags=re.M):
        module, _, attribute = path.rpartition(".")
        documented = getattr(importlib.import_module(module), attribute, None) or importlib.import_module(path)
        assert documented.__doc__, path
        named |= vars(documented).keys() if isinstance(documented, ModuleType) else {attribute}
    assert set(qdora_fast.__all__) <= named


def documented(heading: str) -> set[str]:
    """The keys of a table of json.md."""
    page = (REFERENCE / "json.md").read_text(encoding="utf-8")
    table = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| ([^|]+) \|", table, flags=re.M)
    return {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}


def test_the_plan_prints_the_documented_keys() -> None:
    printed = json.loads(CliRunner().invoke(cli, ["plan", "demo", "--json"]).stdout)
    assert printed.keys() == documented("plan")


def test_preparing_data_prints_the_documented_keys(tmp_path: Path) -> None:
    settings = ["--set", "data.max_rows=60", "--set", "data.workers=1", "--set", "data.cache=false"]
    done = CliRunner().invoke(cli, ["data", "demo", *settings, "--out", str(tmp_path / "rows"), "--json"])
    assert json.loads(done.stdout.splitlines()[-1]).keys() == documented("data")


def test_the_doctor_and_verify_print_the_documented_keys() -> None:
    text = (REFERENCE / "json.md").read_text(encoding="utf-8")
    assert documented("doctor") == {"ready", "findings"}
    assert re.search(r"^\| `findings` \| (.*) of each \|$", text, flags=re.M)[1] == ", ".join(
        f"`{field.name}`" for field in fields(Finding)
    )
    assert documented("verify") == {"path", "whole", "parts"}


@pytest.mark.slow
def test_a_run_has_the_documented_keys(demo_run: RunFolder) -> None:
    assert demo_run.read_json("evaluation/evaluation.json").keys() == documented("evaluate")
    assert demo_run.read_json("merged_16bit/export.json").keys() == documented("export")
    proof = demo_run.read_json("merged_16bit/export.json")["proof"]
    page = (REFERENCE / "json.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(\w+)`", re.search(r"^\| `proof` \| (.*) \|$", page, flags=re.M)[1])) == proof.keys()
    printed = json.loads(CliRunner().invoke(cli, ["verify", str(demo_run.path), "--json"]).stdout.splitlines()[-1])
    assert printed.keys() == documented("verify")
    assert printed["parts"][0].keys() == {"path", "files", "bytes", "problems"}
