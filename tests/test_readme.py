"""The README says what is true: its layout is the tree, its commands and verbs exist, its figures were measured.

Its links and blocks of code are tested with those of all pages, in tests/docs.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from docs.make_reference import make_verbs
from qdora_fast.cli.main import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BENCHMARKS = (ROOT / "BENCHMARKS.md").read_text(encoding="utf-8")
ENGINE = (ROOT / "docs" / "concepts" / "engine.md").read_text(encoding="utf-8")


def test_it_can_be_read_in_one_go() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("page", ["README.md", "docs/development/architecture.md"])
def test_the_layout_is_the_tree(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    listed = re.findall(r"^(?:  |\| `)(\w+)/(?:`|  )", text, flags=re.MULTILINE)
    package = ROOT / "qdora_fast"
    real = {path.name for path in package.iterdir() if (path / "__init__.py").is_file()}
    assert real <= set(listed)
    assert all((package / name).is_dir() or (ROOT / name).is_dir() for name in listed)


def test_the_files_where_to_start_reading_exist() -> None:
    text = (ROOT / "docs" / "development" / "architecture.md").read_text(encoding="utf-8")
    starts = re.findall(r"^\| `(\w+)/` \| .* \| `(\w+\.py)` \|$", text, flags=re.MULTILINE)
    assert len(starts) == 12
    assert not [f"{folder}/{file}" for folder, file in starts if not (ROOT / "qdora_fast" / folder / file).is_file()]
    orders = text.split("## Reading orders")[1].split("## ")[0]
    files = {path.name for path in (ROOT / "qdora_fast").rglob("*.py")}
    assert set(re.findall(r"`(\w+\.py)`", orders)) <= files


def test_every_command_it_names_exists() -> None:
    table = README.split("## Commands")[1].split("## ")[0]
    named = set(re.findall(r"`(?:qdora-fast )?([a-z][a-z-]+)(?: [A-Z]|`)", table)) - {"adapter"}
    assert named
    assert named <= cli.commands.keys()


def test_the_make_verbs_it_names_exist() -> None:
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    verbs = set(re.findall(r"^  make (\S+)", said, flags=re.MULTILINE))
    assert verbs == make_verbs().keys()
    assert {"install", "train", "test", "test-gpu", "docs", "lint", "format", "clean", "help"} <= verbs
    for verb in re.findall(r"(?:^|`)make ([a-z-]+)", README, flags=re.MULTILINE):
        assert verb in verbs, verb


def test_the_engines_figures_are_those_of_benchmarks_md() -> None:
    def measured(case: str) -> tuple[str, str, str]:
        """ours / PEFT QDoRA, ours / PEFT QLoRA, PEFT QDoRA / PEFT QLoRA of a case that BENCHMARKS.md has."""
        table = BENCHMARKS.split(f"**{case}**")[1].split("\n\n")[1]
        rows = {(cells := row.strip("| ").split(" | "))[0]: cells for row in table.splitlines()}
        ours, peft = rows["qdora-ours"], rows["qdora-peft"]
        return ours[4].strip(), ours[5].strip(), peft[5].strip()

    seen = 0
    for page in (README, ENGINE):
        case = ""
        for row in re.findall(r"^\| ((?:one layer|4-layer|the same).*) \|$", page, flags=re.MULTILINE):
            name, *figures = row.split(" | ")
            if match := re.match(r"one layer (\d+)², (.*)", name):
                case = f"linear {match[1]}, {match[2]}"
            elif match := re.match(r"4-layer Llama, width (\d+), (.*)", name):
                case = f"model 4 x {match[1]}, {match[2]}"
            else:
                case = f"{case.rsplit(', ', 1)[0]}, {name.removeprefix('the same, ')}"
            assert tuple(figures) == measured(case.replace("accumulation", "grad-accum"))[: len(figures)], name
            seen += 1
    assert seen == 9
