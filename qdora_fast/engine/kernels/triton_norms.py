"""Row norms of W + s·B·A, read straight from NF4 or from a dense W: neither W nor B·A is ever written to memory.

A program walks SPAN columns of ROWS rows and keeps its squares in registers; its sum is a partial result, and
a second small reduction adds the partial results of a row in a fixed order. No atomics, so every run gives the
same bits, and m taken from W alone equals c taken with B = 0: both run the very same compiled kernel (A and B in
fp32 and contiguous, rank steps of 16 whatever the rank, no specialisation on rank or alignment), the first with a
rank of 0. Another instruction order would be another sum, and g = m / c would not be 1 at the start.

fp64 is left to the twin.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qdora_fast.engine.kernels.packed import NF4Weight
from qdora_fast.engine.kernels.triton_nf4 import matmul_tile, nf4_arguments, nf4_constants, nf4_tile

ROWS, COLUMNS, SPAN = 32, 128, 1024
RANK = 16
WARPS = 4  # 32 values a thread, and as many squares


def row_norms(weight: NF4Weight | Tensor, lora_a: Tensor | None, lora_b: Tensor | None, scaling: float) -> Tensor:
    """See `kernels.row_norms`."""
    rows, columns = weight.shape
    device = weight.packed.device if isinstance(weight, NF4Weight) else weight.device
    partial = torch.empty((triton.cdiv(columns, SPAN), rows), dtype=torch.float32, device=device)
    if lora_a is None or lora_b is None:
        a, b, rank = partial, partial, 0  # never read
    else:
        a, b, rank = lora_a.float().contiguous(), lora_b.float().contiguous(), lora_a.shape[0]
    grid = (triton.cdiv(rows, ROWS), partial.shape[0])
    update = (a, b, rank, float(scaling))
    sizes = {"RANK": RANK, "ROWS": ROWS, "COLUMNS": COLUMNS, "SPAN": SPAN}
    if isinstance(weight, NF4Weight):
        _nf4_norms_kernel[grid](
            *nf4_arguments(weight),
            *update,
            partial,
            rows,
            columns,
            **nf4_constants(weight),
            **sizes,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    else:
        _dense_norms_kernel[grid](
            weight,
            weight.stride(0),
            weight.stride(1),
            *update,
            partial,
            rows,
            columns,
            **sizes,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return (partial[0] if partial.shape[0] == 1 else partial.sum(0)).sqrt_()


@triton.jit(do_not_specialize=["rank"], do_not_specialize_on_alignment=["a", "b"])
def _nf4_norms_kernel(
    packed: tl.tensor,
    code: tl.tensor,
    absmax: tl.tensor,
    absmax_code: tl.tensor,
    absmax_scale: tl.tensor,
    offset: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    rank: tl.tensor,
    scaling: tl.tensor,
    partial: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    NESTED: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_BITS: tl.constexpr,
    NEST_BITS: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPAN: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * SPAN
    squares = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(first, min(first + SPAN, columns), COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        tile = nf4_tile(
            packed,
            code,
            absmax,
            absmax_code,
            absmax_scale,
            offset,
            None,
            row,
            start,
            rows,
            columns,
            NESTED,
            EVEN,
            BLOCK_BITS,
            NEST_BITS,
            COLUMNS,
        )
        tile += scaling * matmul_tile(b, rank, 1, a, columns, 1, row, column, rows, columns, rank, RANK)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        squares += tl.where(inside, tile * tile, 0.0)
    tl.store(partial + tl.program_id(1) * rows + row, tl.sum(squares, axis=1), mask=row < rows)


@triton.jit(do_not_specialize=["rank"], do_not_specialize_on_alignment=["a", "b"])
def _dense_norms_kernel(
    weight: tl.tensor,
    weight_row: tl.tensor,
    weight_column: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    rank: tl.tensor,
    scaling: tl.tensor,
    partial: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPAN: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * SPAN
    squares = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(first, min(first + SPAN, columns), COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        at = row[:, None] * weight_row + column.to(tl.int64)[None, :] * weight_column
        tile = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
        tile += scaling * matmul_tile(b, rank, 1, a, columns, 1, row, column, rows, columns, rank, RANK)
        squares += tl.where(inside, tile * tile, 0.0)
    tl.store(partial + tl.program_id(1) * rows + row, tl.sum(squares, axis=1), mask=row < rows)
