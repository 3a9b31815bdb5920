"""Which scripts and languages a set of texts is written in: information for the report, nothing is dropped by it.

The script of a text is certain and cheap. Its language is py3langid's guess, good for a sentence or more of one
language; short texts, code and rows of numbers are guesses only, so that the shares of a set mean more than the
label of a row.
"""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import regex

CHARACTERS_FOR_SCRIPT = 2_000
"""How much of a text decides about its script."""
CHARACTERS_FOR_LANGUAGE = 1_000
"""How much of a text its language is guessed from."""
MOST_TEXTS = 1_000
"""Texts of a set whose language is guessed, evenly spaced."""
FEWEST_LETTERS = 20
"""Letters below which a language would be a dice roll."""
TOO_SHORT = "too short"

SCRIPTS = (
    *("Latin", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari", "Bengali", "Gurmukhi", "Gujarati", "Oriya"),
    *("Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala", "Thai", "Lao", "Myanmar", "Khmer", "Tibetan", "Han"),
    *("Hiragana", "Katakana", "Hangul", "Armenian", "Georgian", "Ethiopic", "Mongolian", "Thaana", "Ol_Chiki"),
    *("Meetei_Mayek", "Syriac", "Cherokee"),
)
"""Unicode scripts told apart; letters of others are "other"."""

_LETTER = regex.compile(r"\p{L}")
_ASCII_LETTER = regex.compile(r"[A-Za-z]")
_SCRIPT = regex.compile("|".join(rf"(?P<{name}>\p{{Script={name}}})" for name in SCRIPTS))


def script_of(text: str) -> str:
    """The Unicode script of most letters in the first 2,000 characters: one of `SCRIPTS`, "other", or "none"."""
    text = text[:CHARACTERS_FOR_SCRIPT]
    if text.isascii():
        return "Latin" if _ASCII_LETTER.search(text) else "none"
    scripts: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if script := _script(character):
            scripts[script] += count
    return min(scripts, key=lambda name: (-scripts[name], name), default="none")


def languages(texts: Sequence[str]) -> dict[str, float]:
    """Shares of languages among at most 1,000 texts, evenly spaced: ISO 639 code -> share, largest first.

    Texts with fewer than 20 letters count as "too short". The shares add up to 1; no texts, no shares.
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    looked_at = min(len(texts), MOST_TEXTS)
    chosen = [texts[position * len(texts) // looked_at][:CHARACTERS_FOR_LANGUAGE] for position in range(looked_at)]
    long_enough = [len(_LETTER.findall(text)) >= FEWEST_LETTERS for text in chosen]
    if not any(long_enough):
        return {TOO_SHORT: 1.0} if chosen else {}
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    return shares(
        identifier.classify(unicodedata.normalize("NFC", text))[0] if enough else TOO_SHORT
        for text, enough in zip(chosen, long_enough, strict=True)
    )


def shares(values: Iterable[str]) -> dict[str, float]:
    """Share of each value, largest first."""
    counts = Counter(values)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {value: count / counts.total() for value, count in ranked}


@functools.cache
def _script(character: str) -> str:
    """The script of a letter, "" for other characters."""
    if not _LETTER.match(character):
        return ""
    match = _SCRIPT.match(character)
    return (match.lastgroup if match else None) or "other"
