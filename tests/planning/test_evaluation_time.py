"""How long an evaluation takes is what an earlier one took; held-out losses have a share of the training."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdora_fast.planning.evaluation_time import HALF, Spent


def test_the_share_of_held_out_losses_follows_from_tokens() -> None:
    even = Spent(steps=10, step_tokens=100, held_out_tokens=300)  # once costs what one step costs
    assert even.loss_share(every=1) == pytest.approx(1 / 2)
    assert even.loss_share(every=10) == pytest.approx(1 / 11)
    assert Spent(10, 100, 0).loss_share(every=1) == 0
    assert Spent(steps=12, step_tokens=10, held_out_tokens=1000).advised_steps() is None, "once is too much already"


@given(st.integers(1, 5000), st.floats(1, 1e6), st.floats(1, 1e8))
def test_what_is_advised_takes_half_of_the_time_at_most(steps: int, step_tokens: float, held_out: float) -> None:
    spent = Spent(steps, step_tokens, held_out)
    every = spent.advised_steps()
    if every is None:
        assert spent.loss_share(steps) > HALF
    else:
        assert 1 <= every <= steps and spent.loss_share(every) <= HALF + 1e-9
