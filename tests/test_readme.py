"""The README says what is true: its file map is the tree, its commands and presets exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from click.testing import CliRunner

from qdora_fast.cli.main import cli
from qdora_fast.config.presets import list_presets
from qdora_fast.system.errors import QdoraError

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_file_map_is_the_tree() -> None:
    block = README.split("## File map")[1].split("```")[1]
    mapped = set(re.findall(r"^  (\S+)", block, flags=re.MULTILINE))
    package = ROOT / "qdora_fast"
    real = {path.name for path in package.glob("*.py")}
    real |= {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").is_file()}
    assert mapped == real


def test_every_preset_is_listed() -> None:
    missing = [preset.name for preset in list_presets() if f"`{preset.name}`" not in README]
    assert not missing


def test_the_table_of_what_fits_is_what_plan_says() -> None:
    said = CliRunner().invoke(cli, ["plan", "--presets"]).stdout
    planned = dict(re.findall(r"^\| (`\S+`) \| (.*) \|$", said, flags=re.MULTILINE))
    for name, (_, _, peak, _, longest) in ((name, row.split(" | ")) for name, row in planned.items()):
        line = next(line for line in README.split("## Will it fit?")[1].splitlines() if line.startswith(f"| {name} "))
        assert f"| {peak} | {longest} |" in line, f"{name}: plan says {peak} and {longest}"


def test_every_exit_code_is_listed() -> None:
    def kinds(kind: type[QdoraError]) -> list[type[QdoraError]]:
        return [kind, *(child for each in kind.__subclasses__() for child in kinds(each))]

    listed = README.split("## Exit codes")[1].split("## ")[0]
    codes = {int(code) for code in re.findall(r"(?:^|· |·\n)(\d+) ", listed, flags=re.MULTILINE)}
    assert {kind.exit_code for kind in kinds(QdoraError)} <= codes


def test_the_make_verbs_it_names_exist() -> None:
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    verbs = set(re.findall(r"^  make (\S+)", said, flags=re.MULTILINE))
    assert {"install", "train", "test", "test-gpu", "lint", "format", "clean", "help"} <= verbs
    for verb in re.findall(r"(?:^|`)make ([a-z-]+)", README, flags=re.MULTILINE):
        assert verb in verbs, verb
