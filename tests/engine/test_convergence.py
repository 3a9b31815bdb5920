"""200 steps on the same data with the same seeds: ours is closer to PEFT in fp32 than PEFT in bf16 is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_models import tiny_lm
from torch import Tensor

from qdora_fast.engine import fallbacks, install

STEPS, BATCH, LENGTH, WORDS = 200, 8, 12, 48


def _data() -> Tensor:
    """[rows, LENGTH]: each row goes on from its first word by one random permutation, with some noise."""
    generator = torch.Generator().manual_seed(0)
    follows = torch.randperm(WORDS, generator=generator)
    rows = [torch.randint(WORDS, (64,), generator=generator)]
    for _ in range(LENGTH - 1):
        noise = torch.rand(64, generator=generator) < 0.05
        rows.append(torch.where(noise, torch.randint(WORDS, (64,), generator=generator), follows[rows[-1]]))
    return torch.stack(rows, dim=1) + 1


def _curve(dtype: torch.dtype, *, ours: bool) -> Tensor:
    """The losses of a run, in fp64."""
    model: Any = tiny_lm(dtype=dtype, fresh=True, r=8, lora_alpha=16)
    install(model, impl="torch" if ours else "peft")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, fused=True)
    data, losses = _data(), []
    for step in range(STEPS):
        ids = data[torch.randint(len(data), (BATCH,), generator=torch.Generator().manual_seed(step))]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert fallbacks(model) == {}
    return torch.tensor(losses, dtype=torch.float64)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Matrices this small are done sooner by one thread, and much sooner on shared cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.usefixtures("one_thread")
def test_the_loss_curves_are_pefts() -> None:
    theirs, ours = _curve(torch.float32, ours=False), _curve(torch.float32, ours=True)
    theirs16, ours16 = _curve(torch.bfloat16, ours=False), _curve(torch.bfloat16, ours=True)
    yardstick = float((theirs - theirs16).abs().max())
    assert float(theirs[-20:].mean()) < 0.7 * float(theirs[:5].mean())  # something was learnt
    assert float((theirs - ours).abs().max()) < yardstick
    assert float((theirs - ours16).abs().max()) <= 1.5 * yardstick
    assert torch.isfinite(ours16).all()
