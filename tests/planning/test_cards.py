"""Cards are named in one way: by a name that people use, or by their memory."""

from __future__ import annotations

import re

import pytest

from qdora_fast.config.presets import list_presets
from qdora_fast.planning.cards import MEMORY_MIB, find_card
from qdora_fast.system.errors import ConfigError


@pytest.mark.parametrize("text", ["RTX 3090", "rtx3090", "NVIDIA GeForce RTX 3090", "3090", "RTX-3090"])
def test_a_card_is_found_by_any_usual_spelling(text: str) -> None:
    assert find_card(text).name == "RTX 3090"
    assert find_card(text).memory == 24 * 2**30


@pytest.mark.parametrize(("text", "gib"), [("24", 24), ("22.5", 22.5), ("80GB", 80), ("48 GiB", 48)])
def test_a_number_is_memory_in_gib(text: str, gib: float) -> None:
    assert find_card(text).memory == gib * 2**30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("RTX 3095", "did you mean RTX 3090"),
        ("A100", "did you mean A100 40GB or A100 80GB?"),
        ("abacus", "there are RTX 3060"),
        ("", "there are RTX 3060"),
        ("0", "its memory in GiB, for instance --card 24"),
        ("-1", "its memory in GiB"),
        ("2000", "its memory in GiB"),
    ],
)
def test_an_unknown_card_is_an_error_that_names_near_ones(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        find_card(text)


def test_every_name_of_the_table_is_found_and_is_no_size() -> None:
    assert [find_card(name).name for name in MEMORY_MIB] == list(MEMORY_MIB)


def test_the_cards_that_presets_are_written_for_are_known() -> None:
    for preset in list_presets():
        _, _, named = preset.card.partition(":")
        for name in filter(None, (name.strip() for name in re.sub(r"\(.*", "", named).split(","))):
            name = "A100 80GB" if name == "A100" else name
            assert find_card(name).memory > 0.9 * (preset.memory_gib or 0) * 2**30
