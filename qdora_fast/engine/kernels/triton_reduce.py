"""Σ_t a ⊙ b over tokens, the gradient of a magnitude, in two stages without atomics: every run gives the same bits.

A program owns COLUMNS features and SPAN tokens. Its products are made and added in fp32, so those of 16-bit inputs
are not rounded; one row of partial sums per span goes to memory, 1/64 of what was read, and PyTorch adds the rows.
One stage alone would leave most of the card idle: there are far fewer features than threads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS, COLUMNS, SPAN = 16, 128, 64
WARPS = 4  # 16 values a thread


def column_dot(a: Tensor, b: Tensor) -> Tensor:
    """See `kernels.column_dot`."""
    tokens, columns = a.shape
    partial = new_partial(a)
    grid = (triton.cdiv(columns, COLUMNS), partial.shape[0])
    _column_dot_kernel[grid](
        a,
        a.stride(0),
        b,
        b.stride(0),
        partial,
        tokens,
        columns,
        TOKENS=TOKENS,
        COLUMNS=COLUMNS,
        SPAN=SPAN,
        num_warps=WARPS,
        enable_fp_fusion=True,
    )
    return add_partial(partial)


def new_partial(like: Tensor) -> Tensor:
    """Room for one partial sum per span of tokens, fp32 [ceil(T / SPAN), n]."""
    return torch.empty((triton.cdiv(like.shape[0], SPAN), like.shape[1]), dtype=torch.float32, device=like.device)


def add_partial(partial: Tensor) -> Tensor:
    """The second stage, fp32 [n]."""
    return partial[0] if partial.shape[0] == 1 else partial.sum(0)


@triton.jit
def _column_dot_kernel(
    a: tl.tensor,
    a_row: tl.tensor,
    b: tl.tensor,
    b_row: tl.tensor,
    partial: tl.tensor,
    tokens: tl.tensor,
    columns: tl.tensor,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPAN: tl.constexpr,
) -> None:
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.program_id(1).to(tl.int64) * SPAN
    total = tl.zeros((TOKENS, COLUMNS), dtype=tl.float32)
    for start in range(0, SPAN, TOKENS):
        token = first + start + tl.arange(0, TOKENS)
        inside = (token < tokens)[:, None] & (column < columns)[None, :]
        x = tl.load(a + token[:, None] * a_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
        y = tl.load(b + token[:, None] * b_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
        total += x * y
    at = tl.program_id(1).to(tl.int64) * columns + column
    tl.store(partial + at, tl.sum(total, axis=0), mask=column < columns)
