from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdora_fast.data.clean.languages import MOST_TEXTS, SCRIPTS, languages, script_of

ENGLISH = "The farmer sells the eggs of her ducks at the market every morning."
TELUGU = "జానెట్ బాతులు ప్రతి రోజూ పదహారు గుడ్లు పెడతాయి, ఆమె వాటిని అమ్ముతుంది."
HINDI = "भारत की राजधानी नई दिल्ली है और यह बहुत बड़ा शहर है।"


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Hello, world!", "Latin"),
        ("été", "Latin"),
        ("Привет, world", "Cyrillic"),
        (HINDI, "Devanagari"),
        (TELUGU, "Telugu"),
        ("தமிழ் ஒரு செம்மொழி", "Tamil"),
        ("中文文本", "Han"),
        ("こんにちは世界", "Hiragana"),
        ("𐎠𐎡𐎢", "other"),  # Old Persian
        ("12 + 7 = 19 ✓ 👍", "none"),
        ("", "none"),
    ],
)
def test_the_script_of_most_letters_is_named(text: str, script: str) -> None:
    assert script_of(text) == script


def test_quoted_words_of_another_script_do_not_decide() -> None:
    assert script_of(f"{HINDI} (New Delhi)") == "Devanagari"
    assert script_of(f"{ENGLISH} In Telugu: గుడ్లు") == "Latin"


def test_only_the_beginning_of_a_text_decides_about_its_script() -> None:
    assert script_of("a" * 2_000 + "ж" * 10_000) == "Latin"


@given(st.text())
def test_every_text_has_a_script_that_repetition_does_not_change(text: str) -> None:
    assert script_of(text) in {*SCRIPTS, "other", "none"}
    assert script_of(text[:1_000] * 2) == script_of(text[:1_000])


def test_shares_of_languages_are_sorted_and_add_up() -> None:
    shares = languages([ENGLISH] * 5 + [TELUGU] * 3 + [HINDI] + ["42"])
    assert shares == {"en": 0.5, "te": 0.3, "hi": 0.1, "too short": 0.1}
    assert list(shares) == ["en", "te", "hi", "too short"]


def test_short_texts_are_not_guessed() -> None:
    assert languages(["yes", "42", ""]) == {"too short": 1.0}
    assert languages([]) == {}


def test_large_sets_are_sampled_evenly_and_always_alike() -> None:
    texts = [ENGLISH] * (2 * MOST_TEXTS) + [TELUGU] * (2 * MOST_TEXTS)
    assert languages(texts) == languages(texts) == {"en": 0.5, "te": 0.5}
