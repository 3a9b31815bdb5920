"""`visible`: text with pictures in place of what would steer a terminal or mislead its reader.

Apart from line breaks and tabs, control characters act on a terminal; marks of direction (U+202A to U+202E, U+2066 to
U+2069) make text read in another order than it is written; tag characters (U+E0000 to U+E007F) are invisible text; lone
surrogates cannot be printed at all. Marks that writing from right to left needs (U+200E, U+200F, U+061C) stay.
"""

from __future__ import annotations

import json

_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_PICTURES |= dict.fromkeys((*range(0x80, 0xA0), *range(0xD800, 0xE000), *range(0xE0000, 0xE0080)), 0xFFFD)
_PICTURES |= dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD)
_ESCAPES = {code: json.dumps(chr(code))[1:-1] if code != 0x7F else "\\u007f" for code in _PICTURES}


def visible(text: str) -> str:
    """The text with a picture for each control character and mark of direction; line breaks and tabs stay."""
    return text if text.isascii() and text.isprintable() else text.translate(_PICTURES)


def escaped(text: str) -> str:
    r"""JSON text with `\u` escapes for the characters that `visible` replaces: the same values to whoever reads it."""
    return text if text.isascii() and text.isprintable() else text.translate(_ESCAPES)
