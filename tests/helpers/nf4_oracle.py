"""Real NF4 weights made by bitsandbytes, and what they mean, worked out by hand in fp32 and fp64."""

from __future__ import annotations

import torch
from torch import Tensor

from qdora_fast.engine.kernels import NF4Weight


def quantized(
    shape: tuple[int, int], dtype: torch.dtype, *, nested: bool = True, blocksize: int = 64, device: str = "cpu"
) -> tuple[Tensor, object]:
    """A random matrix as bitsandbytes packs it: (packed, quant_state)."""
    from bitsandbytes.functional import quantize_4bit

    torch.manual_seed(shape[0] * 1000 + shape[1])
    matrix = torch.randn(shape).to(dtype).to(device)
    return quantize_4bit(matrix, blocksize=blocksize, compress_statistics=nested, quant_type="nf4")


def nf4(shape: tuple[int, int], dtype: torch.dtype, **how: object) -> NF4Weight:
    """The same for the kernels."""
    return NF4Weight.of(*quantized(shape, dtype, **how))


def codes_and_scales(weight: NF4Weight) -> tuple[Tensor, Tensor]:
    """code and absmax of every value, both fp32 [out, in]."""
    halves = torch.stack([weight.packed >> 4, weight.packed & 15], dim=1).reshape(-1).long()
    scales = weight.absmax
    if weight.nested:
        outer = weight.absmax_scale.repeat_interleave(weight.absmax_block)[: scales.numel()]
        scales = weight.absmax_code[scales.long()] * outer + weight.offset
    values = weight.shape[0] * weight.shape[1]
    return (
        weight.code[halves[:values]].view(weight.shape),
        scales.repeat_interleave(weight.blocksize)[:values].view(weight.shape),
    )


def dense(weight: NF4Weight, *, rounded: bool = True) -> Tensor:
    """W in fp64: rounded as a product sees it, or what NF4 says."""
    codes, scales = codes_and_scales(weight)
    values = codes * scales
    return (values.to(weight.dtype) if rounded else values).double()


def assert_as_exact(ours: Tensor, baseline: Tensor, exact: Tensor, tolerance: float) -> None:
    """|ours − exact| ≤ |baseline − exact| + tolerance · |largest exact value|, at the worst place of each."""
    assert ours.shape == exact.shape and torch.isfinite(ours).all()
    if exact.numel():
        error, allowed = ((x.double() - exact).abs().max().item() for x in (ours, baseline))
        assert error <= allowed + tolerance * exact.abs().max().item(), f"error {error:.3g}, allowed {allowed:.3g}"
