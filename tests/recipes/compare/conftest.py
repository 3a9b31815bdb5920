"""Results of trials that were never run, with the figures that a test wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest


@pytest.fixture
def result() -> Any:
    """A function that makes the result of one trial: a loss for each 10 steps, the last of which is its end."""

    def make(
        arm: str, seed: int, losses: Sequence[float | None], *, right: int = 8, asked: int = 10, rate: float = 1e-3
    ) -> dict[str, Any]:
        finite = [loss for loss in losses if loss is not None]
        return {
            "arm": arm,
            "learning_rate": rate,
            "seed": seed,
            "steps": 10 * (len(losses) - 1),
            "curve": [[10 * number, loss] for number, loss in enumerate(losses)],
            "loss": losses[-1],
            "best_loss": min(finite, default=None),
            "scores": [1.0] * right + [0.0] * (asked - right),
            "step_seconds": 0.02,
            "trained_parameters": 1234,
            "memory": {"weights": 2**20, "total": 3 * 2**20},
            "seconds": 1.0,
        }

    return make
