"""Characters that act on a terminal or on the order of what is read, for the tests of what is shown."""

from __future__ import annotations

import unicodedata

HOSTILE = "\x1b]0;OWNED\x07\x1b[2J\x9b31m \u202eabc\u2066 \U000e0041 \ud800 \r\b"
_ORDER = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xE0000, 0xE0080))}


def acting(text: str) -> list[str]:
    """Those of a text."""
    steering = _ORDER | {each for each in text if unicodedata.category(each) in ("Cc", "Cs") and each not in "\n\t"}
    return [each for each in text if each in steering]
