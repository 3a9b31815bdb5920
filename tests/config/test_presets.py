"""Shipped configs: found by name, described by their own header, chosen by the card's memory."""

from __future__ import annotations

import pytest

from qdora_fast.config.presets import choose_preset, find_config, list_presets
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.hardware import Gpu


def _card(gib: float) -> Gpu:
    return Gpu("a card", gib, (8, 9), "999")


@pytest.mark.parametrize(
    ("gib", "preset"),
    [
        (15.6, "llama3.1-8b-16gb"),
        (22.5, "qwen3-8b-24gb"),
        (23.99, "qwen3-8b-24gb"),
        (47.5, "qwen3-8b-24gb"),
        (79.2, "llama3.1-70b-80gb"),
    ],
)
def test_the_cards_memory_chooses(gib: float, preset: str) -> None:
    path, why = choose_preset([_card(gib)])
    assert path.stem == preset
    assert path.is_file()
    assert f"{gib:.0f} GiB" in why


def test_without_a_gpu_the_demo_is_chosen() -> None:
    path, why = choose_preset([])
    assert path.stem == "demo"
    assert "no NVIDIA GPU" in why


def test_a_card_too_small_for_every_preset_is_told_what_to_do() -> None:
    with pytest.raises(ConfigError, match="model.name"):
        choose_preset([_card(8)])


def test_a_preset_is_found_by_name_and_a_file_by_path() -> None:
    assert find_config("demo").name == "demo.yaml"
    assert find_config("some/where.yaml").name == "where.yaml"
    with pytest.raises(ConfigError, match="did you mean llama3.1-8b-24gb"):
        find_config("llama-8b-24gb")


def test_every_preset_says_what_it_is_and_for_which_card() -> None:
    presets = {preset.name: preset for preset in list_presets()}
    assert {"demo", "llama3.1-8b-24gb", "qwen3-8b-24gb", "qwen3.5-9b-24gb", "gemma3-12b-24gb"} <= set(presets)
    for preset in presets.values():
        assert preset.about, preset.name
        assert preset.card != "any" or preset.name == "demo", preset.name
