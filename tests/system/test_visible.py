"""`visible`: nothing in a text acts on a terminal any more, and writing of all kinds stays."""

from __future__ import annotations

import json

import pytest
from hostile_text import HOSTILE, acting
from hypothesis import given
from hypothesis import strategies as st

from qdora_fast.system.visible import escaped, visible


@given(st.text(st.characters() | st.sampled_from(HOSTILE)))
def test_nothing_acts_in_visible_text_and_the_rest_stays(text: str) -> None:
    shown = visible(text)
    assert not acting(shown) and len(shown) == len(text)
    assert all(new == old for new, old in zip(shown, text, strict=True) if not acting(old))


@pytest.mark.parametrize("text", ["مرحبا\u200f (abc)\u200e", "שלום", "👩‍👩‍👧 🏳️‍🌈", "a\u0301\ttab\nline", "中文"])
def test_writing_of_the_world_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(HOSTILE)))
def test_json_for_the_terminal_has_the_same_values(text: str) -> None:
    shown = escaped(json.dumps({text: [text]}, ensure_ascii=False))
    assert json.loads(shown) == json.loads(json.dumps({text: [text]})) and not acting(shown)
