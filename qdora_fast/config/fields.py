"""What every section is made of: a frozen model that knows no unknown keys, and numbers that are numbers."""

from __future__ import annotations

import math
from datetime import date
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from qdora_fast.system.limits import SETTING_COUNT, SETTING_NUMBER

SHOWN_CHARACTERS = 200


def number(value: object) -> object:
    """Refuse what pydantic would quietly turn into a number: true, and NaN or infinity."""
    if isinstance(value, bool):
        raise ValueError("expected a number, not true/false")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("expected a finite number")
    if isinstance(value, int) and abs(value) > SETTING_COUNT:
        raise ValueError(f"expected at most {SETTING_COUNT:,}")
    if isinstance(value, float) and abs(value) > SETTING_NUMBER:
        raise ValueError(f"expected at most {SETTING_NUMBER:g}")
    return value


def short(text: str) -> str:
    """A text for a message, cut where nobody reads on."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}... ({len(text):,} characters)"


def _day(value: object) -> object:
    """A day as YAML reads it, or as text, as 2026-01-31."""
    try:
        return value if value is None else date.fromisoformat(str(value)).isoformat()
    except ValueError:
        raise ValueError(f"expected a day such as 2026-01-31, not {value}") from None


Day = Annotated[str, BeforeValidator(_day)]
Real = Annotated[float, BeforeValidator(number)]
Count = Annotated[int, BeforeValidator(number)]


def auto_or(what: str, *, least: int = 1, most: int | None = None) -> BeforeValidator:
    """Take `auto` or a whole number from `least` to `most`; anything else is one error."""

    def check(value: object) -> object:
        if value == "auto":
            return value
        counted = isinstance(value, int) and not isinstance(value, bool)
        if not counted or not least <= value <= (most or SETTING_COUNT):  # type: ignore[operator]  # counted: an int
            raise ValueError(f"expected auto or {what}")
        return value

    return BeforeValidator(check)


class Section(BaseModel):
    """A part of the config. Unknown keys are errors; a loaded config never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
