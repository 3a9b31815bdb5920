"""The gated MLP as one autograd function: h = act(x Wgᵀ) ⊙ (x Wuᵀ), y = h Wdᵀ, each W adapted.

Saved for the backward: x, the outputs e and g of gate and up, and y. h is made again. Layer by layer, autograd
would save act(e) and h beside them. dm of gate and up costs nothing: where the activation's gradient is computed,
de, e, dg and g are at hand, and Σ_t de ⊙ e is summed in passing (kernels.glu_backward).

Gate and up with a bias, or dropout, or outputs in another type than x, run layer by layer instead; so does
everything that layers.py hands to PEFT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qdora_fast.engine import kernels
from qdora_fast.engine.functions import (
    Projection,
    backward_group,
    dots_to_dm,
    forward_group,
    gradients_at_rank,
    input_gradient,
    parameter_gradients,
    refuse_second_derivative,
    retry_without_resident,
)


def gated_mlp(
    x: Tensor,
    projections: Sequence[Projection],
    parameters: Sequence[Tensor | None],
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    """y [..., hidden] of a gated MLP, in x's type.

    Args:
        x: [..., hidden].
        projections: gate, up and down.
        parameters: A, B, m of gate, up and down in turn.
        activation: silu (SwiGLU), gelu or gelu_tanh (GeGLU).
        dtype: of computation.
    """
    call = _Call(list(projections), activation, dtype)
    if not torch.is_grad_enabled():
        return call.forward(x)[0]
    y: Tensor = _GatedMlp.apply(x, call, *parameters)
    return y


class _Call:
    """Shapes, types and steps of one forward pass."""

    def __init__(self, projections: list[Projection], activation: str, dtype: torch.dtype) -> None:
        self.gate_up, self.down = projections[:2], projections[2]
        self.activation, self.dtype = activation, dtype

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """y as the caller wants it; x, e, g and y as the backward does, [T, ...]."""

        def work() -> tuple[Tensor, Tensor, Tensor, Tensor]:
            flat = x.reshape(-1, x.shape[-1]).to(self.dtype)
            e, g = forward_group(flat, flat, self.gate_up)  # [T, hidden] -> [T, ff] twice
            h = kernels.glu_forward(e, g, self.activation)
            (y,) = forward_group(h, h, [self.down])  # [T, ff] -> [T, hidden]
            return flat, e, g, y

        flat, e, g, y = retry_without_resident(self.down.snapshot, work)
        return y.view(*x.shape[:-1], y.shape[-1]).to(x.dtype), flat, e, g, y


class _GatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, call: _Call, *parameters: Tensor | None) -> Tensor:
        """y; keeps x, e, g and, where dm of down is wanted, y."""
        result, flat, e, g, y = call.forward(x)
        ctx.call, ctx.shape, ctx.x_dtype = call, x.shape, x.dtype
        ctx.parameter_types = [None if p is None else p.dtype for p in parameters]
        saved = y if call.down.trains_magnitude else None
        ctx.save_for_backward(flat, e, g, saved, *(p for p in parameters if p is not None and p.ndim == 2))
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """dx, and dA, dB, dm of gate, up and down."""
        refuse_second_derivative()
        call: _Call = ctx.call
        flat, e, g, y = ctx.saved_tensors[:4]
        wanted = ctx.needs_input_grad
        dy = gradient.reshape(-1, gradient.shape[-1]).to(call.dtype)
        dx, gradients = retry_without_resident(
            call.down.snapshot, lambda: _backward(call, dy, (flat, e, g, y), wanted[0], wanted[2:])
        )
        dx = None if dx is None else dx.view(ctx.shape).to(ctx.x_dtype)
        typed = [d if d is None or t is None else d.to(t) for d, t in zip(gradients, ctx.parameter_types, strict=True)]
        return dx, None, *typed


def _backward(
    call: _Call, dy: Tensor, saved: tuple[Tensor, Tensor, Tensor, Tensor | None], wants_x: bool, wants: Sequence[bool]
) -> tuple[Tensor | None, list[Tensor | None]]:
    """dx [T, hidden] and dA, dB, dm of gate, up and down."""
    flat, e, g, y = saved
    down, gate_up = [call.down], call.gate_up
    rank_gradients = gradients_at_rank([dy], down)
    dh = input_gradient([dy], rank_gradients, down)  # [T, hidden] -> [T, ff]
    local = kernels.glu_backward(dh, e, g, call.activation, dots=wants[2] or wants[5], spend_dh=True)
    down_gradients = parameter_gradients([dy], rank_gradients, local.h, [y], down, wants[6:])
    # dm of gate and up comes from the dots; their outputs need not be read again.
    without_m = [want and index % 3 != 2 for index, want in enumerate(wants[:6])]
    dx, _, gradients = backward_group(
        [local.de, local.dg],
        flat,
        [None, None],
        gate_up,
        wants_x=wants_x,
        apart=False,
        wants_seen=False,
        wants=without_m,
    )
    for index, dot, projection in ((2, local.dot_e, gate_up[0]), (5, local.dot_g, gate_up[1])):
        if wants[index] and dot is not None:
            gradients[index] = dots_to_dm(dot, projection.snapshot)
    return dx, [*gradients, *down_gradients]
