"""A weight in NF4 as plain tensors: what the kernels read, and the two calls of bitsandbytes that undo it.

Layout: the weight [out, in] is flattened row by row and cut into blocks of `blocksize` values. A value is an
index of 4 bits into `code`, two of them in a byte with the earlier one in the high half; times the largest
magnitude of its block. With double quantisation those magnitudes are 8-bit indices into `absmax_code`, times
a scale per 256 blocks, plus one offset for the whole weight.

Why not bitsandbytes' QuantState: kernels take tensors and numbers, and a state can be moved or replaced beneath
us. The offset stays a tensor of no dimensions, because reading it as a number would wait for the GPU.

Nothing is quantised here, and FP4 is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class NF4Weight:
    """W [out, in] in NF4. `blocks` below is ceil(out · in / blocksize)."""

    packed: Tensor
    """uint8 [ceil(out · in / 2)], flat."""
    shape: tuple[int, int]
    """(out, in)."""
    blocksize: int
    """Values in a block; an even power of two in practice, 64 by default."""
    dtype: torch.dtype
    """What training sees: values are rounded to it."""
    code: Tensor
    """fp32 [16]: the sixteen values of NF4."""
    absmax: Tensor
    """fp32 [blocks], or uint8 [blocks] when nested."""
    absmax_code: Tensor | None = None
    """fp32 [256]; None unless nested, like the next ones."""
    absmax_scale: Tensor | None = None
    """fp32 [ceil(blocks / absmax_block)]."""
    offset: Tensor | None = None
    """fp32, no dimensions; added to every magnitude."""
    absmax_block: int = 256
    """Blocks that share an `absmax_scale`."""

    @property
    def nested(self) -> bool:
        """True with double quantisation."""
        return self.absmax_code is not None

    @classmethod
    def of(cls, packed: Tensor, quant_state: Any) -> NF4Weight:
        """From the data of a bitsandbytes `Params4bit` and its `quant_state`; shares their memory.

        Raises:
            ValueError: the state is not NF4, or the weight is not a matrix.
        """
        if quant_state.quant_type != "nf4":
            raise ValueError(f"the weight is {quant_state.quant_type}, and these kernels read nf4 only")
        if len(quant_state.shape) != 2:
            raise ValueError(f"the weight has shape {tuple(quant_state.shape)}, and a matrix is needed")
        rows, columns = quant_state.shape
        shared = {
            "packed": packed.detach().contiguous().view(torch.uint8).reshape(-1),  # quant_storage may be wider
            "shape": (int(rows), int(columns)),
            "blocksize": int(quant_state.blocksize),
            "dtype": quant_state.dtype,
            "code": quant_state.code.float(),
        }
        nested = quant_state.state2
        if nested is None:
            return cls(**shared, absmax=quant_state.absmax.float().reshape(-1))
        return cls(
            **shared,
            absmax=quant_state.absmax.reshape(-1),
            absmax_code=nested.code.float(),
            absmax_scale=nested.absmax.float().reshape(-1),
            offset=quant_state.offset.float().reshape(()),
            absmax_block=int(nested.blocksize),
        )


def block_scales(weight: NF4Weight) -> Tensor:
    """The magnitude of every block, fp32 [blocks]; un-nested with bitsandbytes' own two steps."""
    if weight.absmax_code is None:
        return weight.absmax
    import bitsandbytes  # noqa: F401 -- registers the operator

    scales = torch.ops.bitsandbytes.dequantize_blockwise(
        weight.absmax, weight.absmax_scale, weight.absmax_code, weight.absmax_block, torch.float32
    )
    return scales.add_(weight.offset)


def unpack(packed: Tensor, scales: Tensor, shape: tuple[int, int], blocksize: int, dtype: torch.dtype) -> Tensor:
    """code · scale as bitsandbytes computes it: in fp32, rounded once to `dtype`. A new tensor of `shape`.

    Where a block spans two rows, bitsandbytes' CPU kernel (0.50) mistakes one block for another; there the
    weight is given to it as a single row, which is the layout it was packed in.
    """
    import bitsandbytes  # noqa: F401 -- registers the operator

    rows, columns = shape
    seen = shape if columns % blocksize == 0 else (1, rows * columns)
    return torch.ops.bitsandbytes.dequantize_4bit(packed, scales, blocksize, "nf4", seen, dtype).view(rows, columns)
