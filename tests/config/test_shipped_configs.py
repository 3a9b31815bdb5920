"""Every YAML in configs/: valid, short, and opening with the command that runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdora_fast.config.loader import load_config
from qdora_fast.config.presets import configs_folder

SHIPPED = sorted(configs_folder().glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_it_is_valid_short_and_says_how_to_run_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    load_config(path)
    assert len(text.splitlines()) <= 40
    assert f"make train CONFIG=configs/{path.name}" in text
    assert "# yaml-language-server: $schema=schema.json" in text


def test_there_is_a_preset_for_each_method_and_card() -> None:
    methods = {path.stem: load_config(path).adapter.method for path in SHIPPED}
    assert set(methods.values()) == {"qdora", "qlora", "dora", "lora"}
    assert methods["llama3.1-8b-24gb"] == "qdora"
    assert {"llama3.1-8b-16gb", "llama3.1-70b-80gb"} <= set(methods)
