"""NF4 to a dense matrix in one launch: un-nest, look up, scale the rows, add the low-rank update, round once.

A program makes a tile [ROWS, COLUMNS] of W' = diag(g) W + L @ R. Two values of a byte share a block, so magnitudes
are read per byte, where the in-between products stay in registers; which row a block belongs to does not matter,
and nothing is asked of `in % blocksize`. With `in` odd a row can begin within a byte, and bytes are read per value.

Bits: the products are bitsandbytes' own, in its order, so g = 1 without an update gives its result exactly. That
needs `enable_fp_fusion=False`: a fused code · scale + offset would round once where bitsandbytes rounds twice.

The update multiplies in fp32 (`ieee`, no tensor cores) unless L and R are both of one 16-bit type, whose products
are exact in the tensor cores. At ranks up to about 32 fp32 hides behind the memory traffic of a consumer card; at
larger ones 16-bit factors are faster. Tile sizes are fixed and reasoned, not autotuned: tuning at
the first call of every shape costs more than it finds.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from qdora_fast.engine.kernels.packed import NF4Weight

ROWS, COLUMNS = 64, 128
WARPS = 8  # 32 values a thread


def dequantize(
    weight: NF4Weight,
    row_scale: Tensor | None,
    low_rank: tuple[Tensor, Tensor] | None,
    dtype: torch.dtype,
    out: Tensor | None,
) -> Tensor:
    """See `kernels.dequantize`."""
    rows, columns = weight.shape
    result = torch.empty(weight.shape, dtype=dtype, device=weight.packed.device) if out is None else out
    left, right = low_rank or (weight.code, weight.code)
    rank = 0 if low_rank is None else left.shape[1]
    if left.dtype != right.dtype:
        left, right = left.float(), right.float()
    grid = (triton.cdiv(columns, COLUMNS), triton.cdiv(rows, ROWS))
    _dequantize_kernel[grid](
        *nf4_arguments(weight),
        weight.code if row_scale is None else row_scale,
        left,
        left.stride(0),
        left.stride(-1),
        right,
        right.stride(0),
        right.stride(-1),
        rank,
        result,
        result.stride(0),
        rows,
        columns,
        **nf4_constants(weight),
        SCALED=row_scale is not None,
        UPDATED=low_rank is not None,
        RANK=16 if rank <= 16 else 32 if left.dtype == torch.float32 else 64,  # at most 48 KB of shared memory
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        num_warps=WARPS,
        enable_fp_fusion=False,
    )
    return result


def nf4_arguments(weight: NF4Weight) -> tuple[Tensor, ...]:
    """What `nf4_tile` reads, in its order; `code` stands in where a plain absmax has no such tensor."""
    if weight.absmax_code is None:
        return weight.packed, weight.code, weight.absmax, weight.code, weight.code, weight.code
    assert weight.absmax_scale is not None and weight.offset is not None
    return weight.packed, weight.code, weight.absmax, weight.absmax_code, weight.absmax_scale, weight.offset


def nf4_constants(weight: NF4Weight) -> dict[str, Any]:
    """What `nf4_tile` is compiled for."""
    return {
        "NESTED": weight.nested,
        "EVEN": weight.shape[1] % 2 == 0,
        "BLOCK_BITS": weight.blocksize.bit_length() - 1,
        "NEST_BITS": weight.absmax_block.bit_length() - 1,
    }


@triton.jit
def nf4_tile(
    packed: tl.tensor,
    code: tl.tensor,
    absmax: tl.tensor,
    absmax_code: tl.tensor,
    absmax_scale: tl.tensor,
    offset: tl.tensor,
    row_scale: tl.tensor,
    row: tl.tensor,
    first_column: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    NESTED: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_BITS: tl.constexpr,
    NEST_BITS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> tl.tensor:
    """code · (absmax · row_scale), fp32 [len(row), COLUMNS]; arbitrary outside the matrix.

    `row` int64 [n] are row numbers, `row_scale` fp32 [n] their scales or None, `first_column` is even.
    """
    if EVEN:
        pair = first_column // 2 + tl.arange(0, COLUMNS // 2)
        inside = (row < rows)[:, None] & (pair < columns // 2)[None, :]
        at_byte = row[:, None] * (columns // 2) + pair[None, :]
        block = at_byte >> (BLOCK_BITS - 1)
    else:
        column = first_column + tl.arange(0, COLUMNS)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        at = row[:, None] * columns + column[None, :]
        at_byte = at >> 1
        block = at >> BLOCK_BITS
    byte = tl.load(packed + at_byte, mask=inside, other=0).to(tl.int32)
    if NESTED:
        index = tl.load(absmax + block, mask=inside, other=0).to(tl.int32)
        scale = tl.load(absmax_code + index) * tl.load(absmax_scale + (block >> NEST_BITS), mask=inside, other=0.0)
        scale = scale + tl.load(offset)
    else:
        scale = tl.load(absmax + block, mask=inside, other=0.0)
    if row_scale is not None:
        scale = scale * row_scale[:, None]
    if EVEN:
        high = tl.load(code + (byte >> 4)) * scale
        low = tl.load(code + (byte & 15)) * scale
        tile = tl.interleave(high, low)
    else:
        shift = tl.where(at & 1 == 0, 4, 0)
        tile = tl.load(code + ((byte >> shift) & 15)) * scale
    return tile


@triton.jit
def matmul_tile(
    left: tl.tensor,
    left_row: tl.tensor,
    left_rank: tl.tensor,
    right: tl.tensor,
    right_rank: tl.tensor,
    right_column: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    rank: tl.tensor,
    RANK: tl.constexpr,
) -> tl.tensor:
    """L @ R for a tile, fp32 [len(row), len(column)]; the three arguments after a matrix are its strides' place."""
    total = tl.zeros((row.shape[0], column.shape[0]), dtype=tl.float32)
    for start in range(0, rank, RANK):
        k = start + tl.arange(0, RANK)
        a = tl.load(
            left + row[:, None] * left_row + k[None, :] * left_rank,
            mask=(row < rows)[:, None] & (k < rank)[None, :],
            other=0.0,
        )
        b = tl.load(
            right + k.to(tl.int64)[:, None] * right_rank + column[None, :] * right_column,
            mask=(k < rank)[:, None] & (column < columns)[None, :],
            other=0.0,
        )
        total = tl.dot(a, b, total, input_precision="ieee")  # [ROWS, RANK] @ [RANK, COLUMNS]
    return total


@triton.jit
def _dequantize_kernel(
    packed: tl.tensor,
    code: tl.tensor,
    absmax: tl.tensor,
    absmax_code: tl.tensor,
    absmax_scale: tl.tensor,
    offset: tl.tensor,
    row_scale: tl.tensor,
    left: tl.tensor,
    left_row: tl.tensor,
    left_rank: tl.tensor,
    right: tl.tensor,
    right_rank: tl.tensor,
    right_column: tl.tensor,
    rank: tl.tensor,
    result: tl.tensor,
    result_row: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    NESTED: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_BITS: tl.constexpr,
    NEST_BITS: tl.constexpr,
    SCALED: tl.constexpr,
    UPDATED: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    first_column = tl.program_id(0) * COLUMNS
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = first_column + tl.arange(0, COLUMNS)
    scale = None
    if SCALED:
        scale = tl.load(row_scale + row, mask=row < rows, other=0.0).to(tl.float32)
    tile = nf4_tile(
        packed,
        code,
        absmax,
        absmax_code,
        absmax_scale,
        offset,
        scale,
        row,
        first_column,
        rows,
        columns,
        NESTED,
        EVEN,
        BLOCK_BITS,
        NEST_BITS,
        COLUMNS,
    )
    if UPDATED:
        tile += matmul_tile(
            left, left_row, left_rank, right, right_rank, right_column, row, column, rows, columns, rank, RANK
        )
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(result + row[:, None] * result_row + column[None, :], tile.to(result.dtype.element_ty), mask=inside)
