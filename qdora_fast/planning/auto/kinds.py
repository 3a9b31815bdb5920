"""What the choice is made from and what it comes to: the rows' lengths, and the resolved numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qdora_fast.planning.cards import ANY_MACHINE, Machine
from qdora_fast.planning.memory.estimate import Estimate, in_gib
from qdora_fast.planning.memory.fit import margin
from qdora_fast.planning.memory.job import Job

COMMON = 99
"""Percentile of the rows' lengths that a length must cover."""


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
class Resolved:
    """What `auto` became, and why."""

    asked: tuple[str, ...]
    """Settings that were `auto`; none: nothing was decided."""
    machine: Machine
    estimate: Estimate
    """Of the run with the numbers."""
    reasons: tuple[str, ...] = ()
    """For the user, a sentence each."""
    refusal: str = ""
    """Why nothing fits, with the fix; empty: it fits."""

    @property
    def job(self) -> Job:
        """The run with the numbers: length, batch size, accumulation, answers at a time."""
        return self.estimate.job

    def lines(self) -> list[str]:
        """The reasons, and the estimated peak where the card is known."""
        if self.machine is ANY_MACHINE:
            return list(self.reasons)
        card = self.machine.card
        of = f"of {in_gib(card.memory)} ({card.name}, {self.machine.why})"
        return [*self.reasons, f"peak {in_gib(self.estimate.peak_bytes)} {of}, estimated"]

    def as_dict(self) -> dict[str, Any]:
        """For fit.json; bytes."""
        card = self.machine.card
        return {
            "asked": list(self.asked),
            "batch_size": self.job.batch_size,
            "gradient_accumulation": self.job.gradient_accumulation,
            "max_length": self.job.length,
            "said": list(self.reasons),
            "card": {"name": card.name, "memory_bytes": card.memory, "gpu": self.machine.on_gpu},
            "margin_bytes": margin(card),
            "estimate": self.estimate.as_dict(),
        }
