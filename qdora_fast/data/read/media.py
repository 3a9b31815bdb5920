"""Pictures, sound and films in a row: what is learned is text, and a row that speaks of a picture is not only text.

Such a row is refused, not read without its picture: its answers would be learned as guesses. A column that merely names
a file or an address beside a question and an answer is no picture yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.read.fields import Fields, is_blank

MEDIA_KEYS = ("image", "images", "video", "videos", "audio", "audios")
PLACEHOLDERS = ("<image>", "<video>", "<audio>")
MEDIUM = {"bytes", "path"}
"""The keys of a picture or a sound as `datasets` stores it."""


def refuse_media(fields: Fields, texts: Sequence[str], place: str = "") -> None:
    """Raise RejectedRow if a row or message holds a picture, sound or film.

    Args:
        texts: of the row.
        place: of the message; "" for a row.
    """
    for key in fields:
        value = fields.peek(key)
        if key not in MEDIA_KEYS and not isinstance(value, list | dict):
            continue
        if _is_medium(value) or (key in MEDIA_KEYS and not is_blank(value) and _means_one(value, texts)):
            raise RejectedRow("not_text", f"{place}.{key}" if place else f"column {key}")


def _means_one(value: Any, texts: Sequence[str]) -> bool:
    """Whether what stands under such a name is one; a text is, if the conversation shows it."""
    return not isinstance(value, str | bool | int | float) or any(
        mark in text for text in texts for mark in PLACEHOLDERS
    )


def _is_medium(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_is_medium, value))
    return isinstance(value, dict) and set(value) == MEDIUM and not is_blank(value)
