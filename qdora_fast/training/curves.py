"""The curves of a training's loss, as a run's page and a notebook draw them."""

from __future__ import annotations

from collections.abc import Sequence

from qdora_fast.system.charts import Point, Series, smooth

WINDOWS = 40
"""The curve of the training loss is averaged over one part in so many of its points."""


def loss_curves(loss: Sequence[Point], held_out: Sequence[Point]) -> list[Series]:
    """Training loss, with each step behind it where it is averaged, and held-out loss, over the steps."""
    window = max(1, len(loss) // WINDOWS)
    return [
        Series("each step", "faint", loss) if window > 1 else Series("", "", []),
        Series("training" + (f", mean of {window} steps" if window > 1 else ""), "train", smooth(loss, window)),
        Series("held out", "held", held_out, dots=True),
    ]
