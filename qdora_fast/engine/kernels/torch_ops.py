"""The kernels' operations in PyTorch, their twins: the same mathematics without Triton, and the fast path on a CPU.

Each runs over blocks of rows of about `BLOCK_ELEMENTS` values, so that what one line writes is still in the
cache when the next line reads it, and a matrix in fp32 never exists as a whole. Larger blocks fall out of the
cache, smaller ones pay PyTorch's cost per call and leave a core idle.

What is 16 bits wide is computed in fp32 and rounded once; what is fp64 is computed in fp64, which the Triton
kernels do not do, so that a backward can be checked by finite differences.

Letters: T tokens, W [out, in], A [r, in], B [out, r], L [out, r], R [r, in].
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from qdora_fast.engine.kernels.packed import NF4Weight, block_scales, unpack

BLOCK_ELEMENTS = 2**20
"""Values in a block of rows: 4 MB of fp32. On two cores 2^19 takes half as long again (each call waits for the second
core), 2^21 and 2^22 are within noise of it."""

GLU_ELEMENTS = 2**20
"""The same for the gated activations, which hold five such blocks at once; 2^18 takes up to twice as long."""


class GluGradients(NamedTuple):
    """What the backward of h = act(e) · g gives; T tokens, n features."""

    h: Tensor
    """[T, n], computed anew, in the dtype of e like the next two."""
    de: Tensor
    dg: Tensor
    dot_e: Tensor | None
    """fp32 [n]: Σ_t de · e, of de before it is rounded; None unless asked for, like the next."""
    dot_g: Tensor | None
    """fp32 [n]: Σ_t dg · g."""


def dequantize(
    weight: NF4Weight,
    row_scale: Tensor | None,
    low_rank: tuple[Tensor, Tensor] | None,
    dtype: torch.dtype,
    out: Tensor | None,
) -> Tensor:
    """See `kernels.dequantize`."""
    exact = torch.promote_types(dtype, torch.float32)
    folded = row_scale if exact == torch.float32 else None
    nothing_follows = low_rank is None and folded is row_scale and dtype != torch.float64
    if nothing_follows and out is None:
        return _unpack(weight, _scales(weight, folded), slice(0, weight.shape[0]), dtype)
    result = torch.empty(weight.shape, dtype=dtype, device=weight.packed.device) if out is None else out
    left, right = (None, None) if low_rank is None else (low_rank[0].to(exact), low_rank[1].to(exact))
    for rows, block in _blocks(weight, folded, dtype if nothing_follows else torch.float32):
        if exact == torch.float64:
            block = block.double()
            if row_scale is not None:
                block.mul_(row_scale[rows, None])
        if left is not None:
            block.addmm_(left[rows], right)  # [rows, r] @ [r, in] -> [rows, in]
        result[rows] = block
    return result


def row_norms(weight: NF4Weight | Tensor, lora_a: Tensor | None, lora_b: Tensor | None, scaling: float) -> Tensor:
    """See `kernels.row_norms`."""
    exact = torch.float32
    for part in (weight, lora_a, lora_b):
        exact = exact if part is None else torch.promote_types(part.dtype, exact)
    left, right = (None, None) if lora_a is None or lora_b is None else (lora_b.to(exact), lora_a.to(exact))
    device = weight.packed.device if isinstance(weight, NF4Weight) else weight.device
    norms = torch.empty(weight.shape[0], dtype=exact, device=device)
    blocks = _blocks(weight, None, torch.float32) if isinstance(weight, NF4Weight) else _dense_blocks(weight, exact)
    for rows, block in blocks:
        block = block.to(exact)
        if left is not None:  # in place, because autocast would send the other form to 16 bits
            block.addmm_(left[rows], right, alpha=scaling)  # [rows, r] @ [r, in] -> [rows, in]
        torch.linalg.vector_norm(block, dim=1, out=norms[rows])
    return norms


def merge(weight: NF4Weight, lora_a: Tensor, lora_b: Tensor, scaling: float, magnitude: Tensor, out: Tensor) -> Tensor:
    """See `kernels.merge`: unpacked once for both the norm and W'."""
    left, right = lora_b.float(), lora_a.float()
    norms = torch.empty(weight.shape[0], dtype=torch.float32, device=out.device)
    for rows, block in _blocks(weight, None, torch.float32):
        block.addmm_(left[rows], right, alpha=scaling)  # [rows, r] @ [r, in] -> [rows, in]
        torch.linalg.vector_norm(block, dim=1, out=norms[rows])
        scale = torch.where(norms[rows] > 0, magnitude[rows] / norms[rows], 1.0)
        torch.mul(block, scale[:, None], out=out[rows])
    return norms


def column_dot(a: Tensor, b: Tensor) -> Tensor:
    """See `kernels.column_dot`."""
    exact = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    total = torch.zeros(a.shape[1], dtype=exact, device=a.device)
    (memory,) = _block_memory(a, BLOCK_ELEMENTS, exact, 1)
    for rows in _row_slices(a.shape, BLOCK_ELEMENTS):
        part = memory[: rows.stop - rows.start]
        total += part.copy_(a[rows]).mul_(b[rows]).sum(0)
    return total


def glu_forward(e: Tensor, g: Tensor, activation: str) -> Tensor:
    """See `kernels.glu_forward`."""
    exact = torch.promote_types(e.dtype, torch.float32)
    act, _ = _ACTIVATIONS[activation]
    h = torch.empty(e.shape, dtype=e.dtype, device=e.device)
    memory = _block_memory(e, GLU_ELEMENTS, exact, 3)
    for rows in _row_slices(e.shape, GLU_ELEMENTS):
        x, y = (_in_type(matrix, rows, block) for matrix, block in zip((e, g), memory, strict=False))
        torch.mul(act(x, out=memory[2][: len(x)]), y, out=h[rows])
    return h


def glu_backward(dh: Tensor, e: Tensor, g: Tensor, activation: str, dots: bool, dg: Tensor | None) -> GluGradients:
    """See `kernels.glu_backward`."""
    exact = torch.promote_types(e.dtype, torch.float32)
    act, act_backward = _ACTIVATIONS[activation]
    direct = exact == e.dtype  # then results are written where they belong, otherwise rounded on the way
    h, de = (torch.empty(e.shape, dtype=e.dtype, device=e.device) for _ in range(2))
    dg = torch.empty(e.shape, dtype=e.dtype, device=e.device) if dg is None else dg
    dot_e, dot_g = (torch.zeros(e.shape[1], dtype=exact, device=e.device) if dots else None for _ in range(2))
    memory = _block_memory(e, GLU_ELEMENTS, exact, 5)
    for rows in _row_slices(e.shape, GLU_ELEMENTS):
        x, y, upstream = (_in_type(matrix, rows, block) for matrix, block in zip((e, g, dh), memory, strict=False))
        gate, d_gate = (block[: len(x)] for block in memory[3:])
        torch.mul(act(x, out=gate), y, out=h[rows])
        torch.mul(upstream, y, out=d_gate)
        d_x, d_y = (de[rows], dg[rows]) if direct else (d_gate, gate)
        act_backward(d_gate, x, grad_input=d_x)
        torch.mul(gate, upstream, out=d_y)
        if not direct:
            de[rows], dg[rows] = d_x, d_y
        if dot_e is not None and dot_g is not None:
            dot_e += torch.mul(d_x, x, out=d_gate).sum(0)
            dot_g += torch.mul(d_y, y, out=gate).sum(0)
    return GluGradients(h, de, dg, dot_e, dot_g)


_aten = torch.ops.aten
_Activation = tuple[Callable[..., Tensor], Callable[..., Tensor]]
_ACTIVATIONS: dict[str, _Activation] = {
    "silu": (_aten.silu.out, _aten.silu_backward.grad_input),
    "gelu": (_aten.gelu.out, _aten.gelu_backward.grad_input),
    "gelu_tanh": (
        functools.partial(_aten.gelu.out, approximate="tanh"),
        functools.partial(_aten.gelu_backward.grad_input, approximate="tanh"),
    ),
}


def _row_slices(shape: tuple[int, int], elements: int) -> Iterator[slice]:
    """Slices that cover the rows, each of about `elements` values and at least one row."""
    rows, columns = shape
    step = max(1, elements // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _block_memory(like: Tensor, elements: int, dtype: torch.dtype, count: int) -> list[Tensor]:
    """Memory for `count` blocks of rows, used again for every block: new memory costs more than the arithmetic."""
    rows, columns = like.shape
    step = min(rows, max(1, elements // max(1, columns)))
    return [torch.empty((step, columns), dtype=dtype, device=like.device) for _ in range(count)]


def _in_type(matrix: Tensor, rows: slice, block: Tensor) -> Tensor:
    """Rows of a matrix in the type of `block`: copied there, unless they have it already."""
    return matrix[rows] if matrix.dtype == block.dtype else block[: rows.stop - rows.start].copy_(matrix[rows])


def _dense_blocks(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows in `dtype`, each a new tensor."""
    for rows in _row_slices(weight.shape, BLOCK_ELEMENTS):
        yield rows, weight[rows].to(dtype, copy=True, memory_format=torch.contiguous_format)


def _blocks(weight: NF4Weight, row_scale: Tensor | None, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows of diag(row_scale) W rounded to `dtype`, each a new tensor; all rows at once where a block of
    NF4 spans two rows."""
    scales = _scales(weight, row_scale)
    rows, columns = weight.shape
    for part in _row_slices(weight.shape, BLOCK_ELEMENTS if _aligned(weight) else rows * columns):
        yield part, _unpack(weight, scales, part, dtype)


def _aligned(weight: NF4Weight) -> bool:
    """Every row begins a block, so rows have scales of their own."""
    return weight.shape[1] % weight.blocksize == 0


def _scales(weight: NF4Weight, row_scale: Tensor | None) -> Tensor:
    """absmax · row_scale, fp32: one per block if a row has blocks of its own, otherwise one per value."""
    scales = block_scales(weight)
    if row_scale is None:
        return scales
    rows, columns = weight.shape
    if not _aligned(weight):
        scales = scales.repeat_interleave(weight.blocksize)[: rows * columns]
    return scales.view(rows, -1) * row_scale.to(torch.float32)[:, None]


def _unpack(weight: NF4Weight, scales: Tensor, rows: slice, dtype: torch.dtype) -> Tensor:
    columns = weight.shape[1]
    if not _aligned(weight):  # then rows are all rows
        if scales.dim() == 1:
            return unpack(weight.packed, scales, weight.shape, weight.blocksize, dtype)
        ones = scales.new_ones(weight.absmax.numel())
        return unpack(weight.packed, ones, weight.shape, weight.blocksize, torch.float32).mul_(scales).to(dtype)
    shape = (rows.stop - rows.start, columns)
    packed = weight.packed[rows.start * columns // 2 : rows.stop * columns // 2]
    scales = scales.view(weight.shape[0], -1)[rows].reshape(-1)
    return unpack(packed, scales, shape, weight.blocksize, dtype)
