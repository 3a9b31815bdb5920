"""h = act(e) · g and its backward, one pass each, with the magnitudes' column sums taken on the way.

Every activation here is act(e) = e · p(e): p is the logistic function for SiLU, the normal distribution for GELU,
and the logistic function of 2u for GELU's tanh form, since (1 + tanh u) / 2 = σ(2u). So one helper gives p and p',
and act' = p + e · p'. All of it is fp32; h, de and dg are rounded once.

The sums Σ_t de · e and Σ_t dg · g use de and dg as they are in registers, before they are rounded, and are reduced in
two stages as in triton_reduce.py. A separate pass for them would read four more arrays of [T, n].

e and g are left alone: overwriting them would save memory, and break a second backward through the same graph.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qdora_fast.engine.kernels.torch_ops import GluGradients
from qdora_fast.engine.kernels.triton_reduce import SPAN, add_partial, new_partial

TOKENS, COLUMNS = 8, 128
WARPS = 4  # 8 values a thread of each of three inputs, and 16 sums


def glu_forward(e: Tensor, g: Tensor, activation: str) -> Tensor:
    """See `kernels.glu_forward`."""
    h = torch.empty(e.shape, dtype=e.dtype, device=e.device)
    grid = (triton.cdiv(e.shape[1], COLUMNS), triton.cdiv(e.shape[0], TOKENS))
    _glu_forward_kernel[grid](
        e,
        e.stride(0),
        g,
        g.stride(0),
        h,
        *e.shape,
        ACTIVATION=activation,
        TOKENS=TOKENS,
        COLUMNS=COLUMNS,
        num_warps=WARPS,
        enable_fp_fusion=True,
    )
    return h


def glu_backward(dh: Tensor, e: Tensor, g: Tensor, activation: str, dots: bool, dg: Tensor | None) -> GluGradients:
    """See `kernels.glu_backward`; every value is read before its place is written, so dg may be dh."""
    h, de = (torch.empty(e.shape, dtype=e.dtype, device=e.device) for _ in range(2))
    dg = torch.empty(e.shape, dtype=e.dtype, device=e.device) if dg is None else dg
    sum_e, sum_g = (new_partial(e), new_partial(e)) if dots else (h, h)  # h: never written as a sum
    grid = (triton.cdiv(e.shape[1], COLUMNS), triton.cdiv(e.shape[0], SPAN))
    _glu_backward_kernel[grid](
        dh,
        dh.stride(0),
        e,
        e.stride(0),
        g,
        g.stride(0),
        h,
        de,
        dg,
        sum_e,
        sum_g,
        *e.shape,
        ACTIVATION=activation,
        DOTS=dots,
        TOKENS=TOKENS,
        COLUMNS=COLUMNS,
        SPAN=SPAN,
        num_warps=WARPS,
        enable_fp_fusion=True,
    )
    if not dots:
        return GluGradients(h, de, dg, None, None)
    return GluGradients(h, de, dg, add_partial(sum_e), add_partial(sum_g))


@triton.jit
def _gate(e: tl.tensor, ACTIVATION: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """p(e) and p'(e), fp32."""
    if ACTIVATION == "silu":
        p = tl.sigmoid(e)
        slope = p * (1.0 - p)
    elif ACTIVATION == "gelu":
        p = 0.5 + 0.5 * tl.erf(e * 0.7071067811865476)  # 1 / √2
        slope = 0.3989422804014327 * tl.exp(-0.5 * e * e)  # 1 / √(2π)
    else:
        tl.static_assert(ACTIVATION == "gelu_tanh", "unknown activation")
        p = tl.sigmoid(1.5957691216057308 * (e + 0.044715 * e * e * e))  # 2 √(2/π)
        slope = p * (1.0 - p) * 1.5957691216057308 * (1.0 + 0.134145 * e * e)
    return p, slope


@triton.jit
def _glu_forward_kernel(
    e: tl.tensor,
    e_row: tl.tensor,
    g: tl.tensor,
    g_row: tl.tensor,
    h: tl.tensor,
    tokens: tl.tensor,
    columns: tl.tensor,
    ACTIVATION: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    token = tl.program_id(1).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    inside = (token < tokens)[:, None] & (column < columns)[None, :]
    x = tl.load(e + token[:, None] * e_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
    y = tl.load(g + token[:, None] * g_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
    p, _ = _gate(x, ACTIVATION)
    tl.store(h + token[:, None] * columns + column[None, :], (x * p * y).to(h.dtype.element_ty), mask=inside)


@triton.jit
def _glu_backward_kernel(
    dh: tl.tensor,
    dh_row: tl.tensor,
    e: tl.tensor,
    e_row: tl.tensor,
    g: tl.tensor,
    g_row: tl.tensor,
    h: tl.tensor,
    de: tl.tensor,
    dg: tl.tensor,
    sum_e: tl.tensor,
    sum_g: tl.tensor,
    tokens: tl.tensor,
    columns: tl.tensor,
    ACTIVATION: tl.constexpr,
    DOTS: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPAN: tl.constexpr,
) -> None:
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.program_id(1).to(tl.int64) * SPAN
    total_e = tl.zeros((TOKENS, COLUMNS), dtype=tl.float32)
    total_g = tl.zeros((TOKENS, COLUMNS), dtype=tl.float32)
    for start in range(0, SPAN, TOKENS):
        token = first + start + tl.arange(0, TOKENS)
        inside = (token < tokens)[:, None] & (column < columns)[None, :]
        upstream = tl.load(dh + token[:, None] * dh_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
        x = tl.load(e + token[:, None] * e_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
        y = tl.load(g + token[:, None] * g_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
        p, slope = _gate(x, ACTIVATION)
        act = x * p
        d_x = upstream * y * (p + x * slope)
        d_y = upstream * act
        at = token[:, None] * columns + column[None, :]
        tl.store(h + at, (act * y).to(h.dtype.element_ty), mask=inside)
        tl.store(de + at, d_x.to(de.dtype.element_ty), mask=inside)
        tl.store(dg + at, d_y.to(dg.dtype.element_ty), mask=inside)
        if DOTS:
            total_e += d_x * x
            total_g += d_y * y
    if DOTS:
        at_sum = tl.program_id(1).to(tl.int64) * columns + column
        tl.store(sum_e + at_sum, tl.sum(total_e, axis=0), mask=column < columns)
        tl.store(sum_g + at_sum, tl.sum(total_g, axis=0), mask=column < columns)
