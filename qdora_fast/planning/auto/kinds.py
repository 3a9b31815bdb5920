"""What the choice is made from and what it comes to: a place, the rows' lengths, a settled config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qdora_fast.config import Config
from qdora_fast.planning.memory import Card, Estimate, in_gib, margin

COMMON = 99
"""Percentile of the rows' lengths that a length must cover."""


@dataclass(frozen=True)
class Place:
    """Where a run happens, or is planned to."""

    card: Card
    on_gpu: bool
    why: str
    """How the place was chosen, in a few words."""


ANYWHERE = Place(Card("any card", 2**50), True, "not known yet")
"""For rows that are prepared without being trained on: whatever they need fits."""


@dataclass(frozen=True)
class RowLengths:
    """How long the rows are."""

    tokens: np.ndarray
    """Of each row that the model can take, or of a sample of them."""
    beyond: int = 0
    """Rows that are longer than the model was made for."""
    sampled: bool = False
    """Guessed from some of the rows, not counted."""

    @property
    def total(self) -> int:
        """Rows, with those that the model cannot take."""
        return len(self.tokens) + self.beyond

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.tokens.max())

    @property
    def common(self) -> int:
        """Tokens that 99 % of the rows do not exceed."""
        return int(np.percentile(self.tokens, COMMON, method="higher"))


@dataclass(frozen=True)
class Settled:
    """A config without `auto`, and how it came about."""

    config: Config
    asked: tuple[str, ...]
    """Settings that were `auto`; none: nothing was decided."""
    place: Place
    estimate: Estimate
    said: tuple[str, ...]
    """For the user, a sentence each."""
    refusal: str = ""
    """Why nothing fits, with the fix; empty: it fits."""

    @property
    def peak(self) -> str:
        """The estimate in words; "" where nobody knows the card."""
        if self.place is ANYWHERE:
            return ""
        counted, card = self.estimate, self.place.card
        of = f"of {in_gib(card.memory)} ({card.name}, {self.place.why})"
        return f"peak {in_gib(counted.peak_bytes)} {of}, estimated"

    def as_dict(self) -> dict[str, Any]:
        """For fit.json; bytes."""
        train = self.config.train
        return {
            "asked": list(self.asked),
            "batch_size": train.micro_batch,
            "gradient_accumulation": train.accumulation,
            "max_length": self.config.model.length,
            "said": list(self.said),
            "card": {"name": self.place.card.name, "memory_bytes": self.place.card.memory, "gpu": self.place.on_gpu},
            "margin_bytes": margin(self.place.card),
            "estimate": self.estimate.as_dict(),
        }
