"""The frozen base weight of a layer, in whatever form it is held: NF4, 8-bit or dense.

The engine asks a frozen weight for two things: a dense matrix made for one product (with the row scale g
and the update s·B·A already in it, if wanted), and the length of its rows. What the form is, and which
kernel does it, is known here and nowhere above.

The dense matrix is rounded once, from fp32. A dense base whose matrix is wanted unchanged is handed out
as it is, without a copy: callers only read.

Not supported, and said at install time: FP4, GPTQ, AWQ and the like, transposed (Conv1D) weights, and
bitsandbytes' repacked layout for inference on some CPUs.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from qdora_fast.engine import kernels
from qdora_fast.engine.kernels.packed import NF4Weight

_REPACKS = "support_avx512bf16_for_cpu"


def set_repacking(module: Any, on: bool) -> bool | None:
    """Switch bitsandbytes' CPU repacking of a 4-bit layer off, or on again.

    On CPUs with AVX512-BF16, a Linear4bit that is asked without gradients repacks its weight into a private layout
    with scales in bfloat16, and every later unpacking of it (DoRA's norm, a merge) reads garbage.

    Returns:
        Whether it was on; None: not such a layer, and nothing was done.
    """
    before: bool | None = getattr(module, _REPACKS, None)
    if before is not None:
        setattr(module, _REPACKS, on)
    return before


class FrozenWeight(Protocol):
    """W [out, in], never trained."""

    shape: tuple[int, int]
    dtype: torch.dtype
    """In which training sees W: what its values are rounded to."""

    def matrix(
        self,
        dtype: torch.dtype,
        row_scale: Tensor | None = None,
        low_rank: tuple[Tensor, Tensor] | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """diag(row_scale) W + L @ R, [out, in], rounded once to `dtype`.

        Args:
            row_scale: g [out], fp32; None: 1.
            low_rank: L [out, r] with g and s in it already, and R [r, in].
            out: memory to write to.
        """
        ...

    def norms(self, lora_a: Tensor | None = None, lora_b: Tensor | None = None, scaling: float = 1.0) -> Tensor:
        """c = ‖W + s·B·A‖₂ of every row, [out], fp32 (fp64 for an fp64 weight)."""
        ...

    def merge(self, lora_a: Tensor, lora_b: Tensor, scaling: float, magnitude: Tensor, out: Tensor) -> Tensor | None:
        """Write diag(m / c) (W + s·B·A) to `out` and return c; None where this saves nothing over the other two."""
        ...


class Nf4:
    """W packed in NF4 by bitsandbytes, with or without double quantisation."""

    def __init__(self, packed: Tensor, quant_state: Any) -> None:
        self.packed = NF4Weight.of(packed, quant_state)
        self.shape, self.dtype = self.packed.shape, self.packed.dtype

    def matrix(
        self,
        dtype: torch.dtype,
        row_scale: Tensor | None = None,
        low_rank: tuple[Tensor, Tensor] | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """See FrozenWeight."""
        return kernels.dequantize(self.packed, row_scale=row_scale, low_rank=low_rank, dtype=dtype, out=out)

    def norms(self, lora_a: Tensor | None = None, lora_b: Tensor | None = None, scaling: float = 1.0) -> Tensor:
        """See FrozenWeight."""
        return kernels.row_norms(self.packed, lora_a, lora_b, scaling)

    def merge(self, lora_a: Tensor, lora_b: Tensor, scaling: float, magnitude: Tensor, out: Tensor) -> Tensor | None:
        """See FrozenWeight."""
        return (
            None if out.dtype == torch.float64 else kernels.merge(self.packed, lora_a, lora_b, scaling, magnitude, out)
        )


class Dense:
    """W as it is, in 16, 32 or 64 bits."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.detach()
        self.shape, self.dtype = (weight.shape[0], weight.shape[1]), weight.dtype

    def matrix(
        self,
        dtype: torch.dtype,
        row_scale: Tensor | None = None,
        low_rank: tuple[Tensor, Tensor] | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """See FrozenWeight."""
        if row_scale is None and low_rank is None and out is None:
            return self.weight.to(dtype)
        return combine(self.weight, dtype, row_scale, low_rank, out)

    def norms(self, lora_a: Tensor | None = None, lora_b: Tensor | None = None, scaling: float = 1.0) -> Tensor:
        """See FrozenWeight."""
        return kernels.row_norms(self.weight, lora_a, lora_b, scaling)

    def merge(self, lora_a: Tensor, lora_b: Tensor, scaling: float, magnitude: Tensor, out: Tensor) -> Tensor | None:
        """See FrozenWeight: a dense W costs nothing to read twice."""
        return None


class Int8(Dense):
    """W in bitsandbytes' row-wise int8. Unpacked for each product: unlike LLM.int8 it never rounds activations."""

    def __init__(self, codes: Tensor, row_absmax: Tensor, dtype: torch.dtype) -> None:
        self.codes, self.steps = codes, row_absmax.float() / 127
        self.shape, self.dtype = (codes.shape[0], codes.shape[1]), dtype

    @property
    def weight(self) -> Tensor:
        """W [out, in] in fp32, made anew."""
        return self.codes.float().mul_(self.steps[:, None])


def combine(
    weight: Tensor,
    dtype: torch.dtype,
    row_scale: Tensor | None,
    low_rank: tuple[Tensor, Tensor] | None,
    out: Tensor | None = None,
) -> Tensor:
    """diag(row_scale) W + L @ R for a dense W, computed in fp32 (fp64 for fp64) by blocks of rows, rounded once."""
    exact = torch.promote_types(weight.dtype, torch.float32)
    result = torch.empty(weight.shape, dtype=dtype, device=weight.device) if out is None else out
    step = max(1, kernels.BLOCK_ELEMENTS // max(1, weight.shape[1]))
    for start in range(0, weight.shape[0], step):
        rows = slice(start, start + step)
        block = weight[rows].to(exact, copy=True)
        if row_scale is not None:
            block.mul_(row_scale[rows, None])
        if low_rank is not None:
            block.addmm_(low_rank[0][rows].to(exact), low_rank[1].to(exact))  # [rows, r] @ [r, in] -> [rows, in]
        result[rows] = block
    return result
