"""How much of what tuning gained is left in an exported model, by the loss on held-out rows.

Rounding to 4 bits can undo a light tune: where the update is smaller than the steps of the grid,
most values fall back to where they were, and the model loads, answers, and is the base again.
Closeness to the trained model alone does not show it, for after a light tune the base is close,
too. So the gain is the yardstick: (base - exported) / (base - trained). Where nothing was held out
or nothing was gained there is no yardstick, which is said and not judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LEAST_KEPT = 0.5
"""With less than half of the gain the exported model is nearer the base than the trained one: refused."""
WELL_KEPT = 0.9
"""With less than this a warning is due."""
NO_GAIN = 0.005
"""Nats per token. A smaller gain cannot be told from rounding."""


@dataclass(frozen=True)
class Survival:
    """Loss on the proof rows, in nats per token."""

    base: float
    trained: float
    exported: float
    held_out: bool
    """False: the rows were trained on, so that their loss says nothing."""

    @property
    def kept(self) -> float | None:
        """Share of the gain that is left; may exceed 1. None where it cannot be judged."""
        gain = self.base - self.trained
        return (self.base - self.exported) / gain if self.held_out and gain > NO_GAIN else None

    @property
    def passed(self) -> bool:
        """False when the exported model is nearer the base than the trained one."""
        return self.kept is None or self.kept >= LEAST_KEPT

    @property
    def warning(self) -> str | None:
        """What to say of a model that passes with a loss."""
        if self.kept is None or self.kept >= WELL_KEPT or not self.passed:
            return None
        return (
            f"only {self.kept:.0%} of what tuning gained on held-out rows is left in this export; merged_16bit keeps it"
        )

    @property
    def words(self) -> str:
        """The finding as one sentence."""
        losses = f"loss {self.base:.4f} base, {self.trained:.4f} trained, {self.exported:.4f} exported"
        if not self.held_out:
            return f"share of the gain kept: not judged, no rows were held out ({losses}, on rows trained on)"
        if self.kept is None:
            return f"share of the gain kept: not judged, tuning gained nothing on held-out rows ({losses})"
        verdict = "" if self.passed else ", nearer the base than the trained model"
        return f"{self.kept:.0%} of the gain on held-out rows kept{verdict} ({losses})"

    def to_dict(self) -> dict[str, Any]:
        """For export.json."""
        return {"base": self.base, "trained": self.trained, "exported": self.exported, "kept": self.kept}
