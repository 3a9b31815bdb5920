"""Which tokens count, and what they cost."""

from __future__ import annotations

import math

import torch

from qdora_fast.data.loss import labelled, token_losses


def test_a_token_counts_where_it_has_a_label_and_something_stands_before_it() -> None:
    positions, tokens = labelled([7, -100, 8, -100, 9])
    assert (positions.tolist(), tokens.tolist()) == ([1, 3], [8, 9])
    assert len(labelled([5])[0]) == len(labelled([])[0]) == 0


def test_the_loss_of_a_token_is_its_negative_log_likelihood_whatever_the_type_of_the_logits() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [2.0, 2.0]], dtype=torch.bfloat16)
    losses = token_losses(logits, torch.tensor([0, 1]))
    assert losses.dtype == torch.float64
    assert torch.allclose(losses, torch.tensor([math.log(4), math.log(2)], dtype=torch.float64), atol=1e-2)
