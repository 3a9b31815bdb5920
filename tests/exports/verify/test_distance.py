"""How far an export is from the trained model: figures whose answer is known, and what is decided by them."""

from __future__ import annotations

import pytest
import torch

from qdora_fast.exports.verify.distance import Distance
from qdora_fast.exports.verify.recording import Recording

ROWS = 12


def recorded(loss: float, *, spread: float = 0.0) -> Recording:
    """Rows of ten tokens with this mean loss; `spread` moves every other row up and the rest down."""
    losses = tuple(10 * (loss + spread * (-1) ** row) for row in range(ROWS))
    return Recording("rows", tuple(torch.full((1, 4), 0.25).log() for _ in range(ROWS)), losses, (10,) * ROWS)


def measured(base: float, trained: float, exported: float, *, spread: float = 0.0, held_out: bool = True) -> Distance:
    return Distance.measure(recorded(base), recorded(trained), recorded(exported, spread=spread), held_out=held_out)


def test_losses_are_compared_row_by_row_and_weighted_by_tokens() -> None:
    long, short = (
        Recording("rows", (torch.zeros(1, 1),) * 2, losses, (30, 10)) for losses in ((30.0, 20.0), (33.0, 18.0))
    )
    distance = Distance.measure(long, long, short, held_out=True)
    assert distance.trained == pytest.approx(50 / 40) and distance.difference == pytest.approx(1 / 40)
    assert distance.rows == 2 and distance.ci95 is not None and distance.ci95[0] < 1 / 40 < distance.ci95[1]
    assert distance.kl == 0 and distance.top1 == 1


@pytest.mark.parametrize(
    ("exported", "spread", "taken"),
    [
        (1.03, 0.001, True),  # more than 0.02 nats, and surely so
        (1.03, 0.1, False),  # as much, but rows disagree
        (1.015, 0.001, False),  # less than 0.02 nats and than 10 % of the gain
        (0.9, 0.001, False),  # the 16-bit base is the better one
    ],
)
def test_the_4_bit_base_is_taken_where_the_16_bit_one_surely_costs_something(
    exported: float, spread: float, taken: bool
) -> None:
    costs = measured(2.0, 1.0, exported, spread=spread).costs
    assert bool(costs) is taken
    if costs:
        assert "0.0300 higher (95 % CI 0.029" in costs and "3% of what tuning gained" in costs


def test_a_tenth_of_a_small_gain_is_something() -> None:
    assert measured(1.05, 1.0, 1.015, spread=0.001).costs
    assert not measured(1.0, 1.0, 1.015, spread=0.001).costs  # nothing gained: 0.02 nats decide alone
    assert measured(0.9, 1.0, 1.025, spread=0.001).costs


def test_one_row_decides_nothing() -> None:
    one, other = (Recording("rows", (torch.zeros(1, 1),), (loss,), (10,)) for loss in (10.0, 20.0))
    distance = Distance.measure(one, one, other, held_out=True)
    assert distance.ci95 is None and distance.costs is None and not distance.lost_gain
    assert "on 1 held-out row:" in distance.words


@pytest.mark.parametrize(
    ("exported", "spread", "kept", "refused", "warned"),
    [
        (1.0, 0.0, 1.0, False, False),
        (1.08, 0.0, 0.92, False, False),
        (1.3, 0.01, 0.7, False, True),
        (1.6, 0.01, 0.4, True, False),
        (1.6, 0.5, 0.4, False, True),  # too uncertain to refuse
        (2.4, 0.01, -0.4, True, False),
        (0.8, 0.01, 1.2, False, False),
    ],
)
def test_what_is_left_of_the_gain(exported: float, spread: float, kept: float, refused: bool, warned: bool) -> None:
    distance = measured(2.0, 1.0, exported, spread=spread)
    assert distance.kept == pytest.approx(kept, abs=1e-9)
    assert distance.lost_gain is refused and bool(distance.warning) is warned
    assert f"{kept:.0%} of the gain kept" in distance.words
    assert f"loss on 12 held-out rows: 2.0000 base, 1.0000 trained, {exported:.4f} exported" in distance.words


@pytest.mark.parametrize(("trained", "held_out"), [(1.0, False), (1.996, True), (2.1, True)])
def test_without_a_gain_on_held_out_rows_its_share_is_not_judged(trained: float, held_out: bool) -> None:
    distance = measured(2.0, trained, 1.99, held_out=held_out)
    assert distance.kept is None and not distance.lost_gain and distance.warning is None
    assert ("rows trained on" in distance.words) is not held_out
