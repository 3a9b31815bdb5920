"""How long the evaluation at the end takes, and how much of a training goes into its held-out losses.

The time at the end is that of an earlier run of the same shape and the same settings of the evaluation, row by row;
without one it is not known, and that is said. The share of the held-out losses while training needs no clock: a forward
pass over a token costs about a third of training on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FORWARD = 1 / 3
"""Of the arithmetic of a training step, forward and backward."""
HALF = 0.5
"""Share of a run from which on an evaluation is worth a word."""
SEVERAL = 5
"""Measurements of the held-out loss that a run should have where it can."""


@dataclass(frozen=True)
class EvaluationTime:
    """What the comparison of base and tuned model took in an earlier run."""

    run: str
    seconds_per_row: float
    """Of both models, reading and answering."""


@dataclass(frozen=True)
class Spent:
    """What a training reads."""

    steps: int
    step_tokens: float
    """Of one step."""
    held_out_tokens: float
    """Of all held-out rows."""

    def loss_share(self, every: int) -> float:
        """Share of the training's time, about, that its held-out losses take, 0 to 1; `every`: steps between two."""
        losses = math.ceil(self.steps / every) * self.held_out_tokens * FORWARD
        return losses / (losses + self.steps * self.step_tokens) if losses else 0.0

    def advised_steps(self) -> int | None:
        """Steps between two held-out losses with which these take half of the time or less; None: not even a single
        one at the end does."""
        times = math.floor(self.steps * self.step_tokens / max(1.0, self.held_out_tokens * FORWARD))
        return math.ceil(self.steps / min(times, SEVERAL)) if times else None
