"""What every section is made of: a frozen model that knows no unknown keys, and numbers that are numbers."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict


def number(value: object) -> object:
    """Refuse what pydantic would quietly turn into a number: true, and NaN or infinity."""
    if isinstance(value, bool):
        raise ValueError("expected a number, not true/false")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("expected a finite number")
    return value


Real = Annotated[float, BeforeValidator(number)]
Count = Annotated[int, BeforeValidator(number)]


class Section(BaseModel):
    """A part of the config. Unknown keys are errors; a loaded config never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
