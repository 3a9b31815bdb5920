"""Bytes and operations, counted on things whose answer can be worked out by hand; then on real arms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.engine.arms import ARMS
from benchmarks.engine.cases import Case
from benchmarks.engine.footprint import footprint, held_bytes, peak_bytes, saved_bytes
from benchmarks.engine.operations import count, operations
from benchmarks.engine.subjects import Subject, build

MODEL = Case("model", "fp32", 128, 64, 1, layers=1, rank=4)
LINEAR = Case("linear", "fp32", 128, 64, 2, rank=4)
KIB = 1024


class _Hiding(torch.autograd.Function):
    """Keeps one tensor the proper way and one that hooks do not see."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x * 2)
        ctx.hidden = x * 3
        return x + 1

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _Stub:
    """As much of a Subject as the counting needs."""

    def __init__(self, model: nn.Module, forward: Any) -> None:
        self.model, self._forward = model, forward
        self.optimizer = torch.optim.SGD([*model.parameters()], lr=0.0)

    def forward(self) -> Tensor:
        result: Tensor = self._forward()
        return result

    def backward(self, output: Tensor) -> None:
        output.sum().backward()

    def step(self) -> None:
        self.backward(self.forward())


def _stub(forward: Any, model: nn.Module | None = None) -> Any:
    return _Stub(model or nn.Linear(1, 1), forward)


def test_saved_counts_a_storage_once_and_leaves_parameters_out() -> None:
    linear = nn.Linear(16, 16, bias=False)
    x = torch.randn(64, 16, requires_grad=True)  # 4 KiB

    def forward() -> Tensor:
        y = linear(x)  # saves x and the weight
        return y * y  # saves y, twice

    assert saved_bytes(_stub(forward, linear)) == 8 * KIB


def test_held_sees_what_a_function_hides_from_the_hooks() -> None:
    x = torch.randn(1024, requires_grad=True)  # 4 KiB
    assert saved_bytes(_stub(lambda: _Hiding.apply(x))) == 4 * KIB
    assert held_bytes(_stub(lambda: _Hiding.apply(x))) == 8 * KIB


def test_peak_counts_what_lives_at_the_same_time() -> None:
    x = torch.randn(1024)  # 4 KiB, there before

    def step() -> None:
        a = x + 1
        b = a + 1
        del a
        c = b + 1  # b and c live, a is gone: 8 KiB
        del b
        (c + 1) + 1  # c and two temporaries: 12 KiB

    stub = _stub(lambda: x)
    stub.step = step
    assert peak_bytes(stub) == 12 * KIB


def test_views_and_allocations_are_not_launches() -> None:
    x, w = torch.randn(8, 4), torch.randn(6, 4)

    def run() -> Tensor:
        torch.empty(3)
        return (x.view(2, 4, 4).reshape(8, 4).detach() @ w.t()).relu_()[2:]

    found, _ = count(run)
    assert (found.gemms, found.launches) == (1, 2)
    assert found.traffic_bytes == 4 * ((8 * 4 + 6 * 4 + 8 * 6) + 8 * 6)


def test_operations_inside_backward_are_counted() -> None:
    layer = nn.Linear(8, 8, bias=False)
    x = torch.randn(4, 8, requires_grad=True)
    output = layer(x).sum()
    found, _ = count(output.backward)
    assert found.gemms == 2


def test_pefts_lora_has_the_gemms_one_can_count_by_hand() -> None:
    """Forward W, A, B; backward two for dx of W and of A, dA, u and dB. DoRA adds B @ A by way of a unit matrix."""
    lora, dora = (operations(build(LINEAR, arm)) for arm in ARMS[:2])
    assert (lora.forward.gemms, lora.backward.gemms) == (3, 5)
    assert dora.forward.gemms == 5


def test_our_layer_takes_no_more_gemms_than_lora_and_fewer_launches_than_dora() -> None:
    counted = {arm.name: operations(build(LINEAR, arm)) for arm in ARMS}
    for name in ("qdora-ours", "qdora-ours-folded", "qdora-ours-merged"):
        ours, lora, dora = counted[name], counted["qlora-peft"], counted["qdora-peft"]
        assert ours.forward.gemms <= lora.forward.gemms
        assert ours.backward.gemms <= lora.backward.gemms + 1  # the folded form makes x A^T again
        assert ours.forward.launches < dora.forward.launches


def test_ours_without_resident_weights_saves_no_more_than_pefts_lora() -> None:
    lora, dora, ours = (
        _warm(replace(MODEL, dtype=dtype), arm) for dtype in ("bf16",) for arm in (ARMS[0], ARMS[1], ARMS[4])
    )
    assert saved_bytes(ours) <= saved_bytes(lora) < saved_bytes(dora)
    assert held_bytes(ours) <= held_bytes(lora) < held_bytes(dora)


@pytest.mark.parametrize("arm", ARMS[:3], ids=lambda arm: arm.name)
def test_checkpointing_holds_less(arm: Any) -> None:
    plain, checkpointed = (footprint(_warm(replace(MODEL, checkpointing=on), arm)) for on in (False, True))
    assert checkpointed.held_bytes < plain.held_bytes / 2
    assert checkpointed.held_bytes > 0  # the layer's input lives in a closure, where hooks do not see it


def _warm(case: Case, arm: Any) -> Subject:
    subject = build(case, arm)
    subject.step()
    return subject
