"""NF4 to a dense matrix: bitsandbytes' bits without an update, one rounding with one."""

from __future__ import annotations

import pytest
import torch
from nf4_oracle import assert_as_exact, codes_and_scales, dense, nf4, quantized

from qdora_fast.engine.kernels import NF4Weight, block_scales, dequantize, torch_ops

ALIGNED = [(1, 64), (3, 192), (70, 128)]
SPANNING = [(1, 1), (5, 1), (3, 96), (3, 130), (70, 33)]
"""A block of 64 spans two rows; where `in` is odd, so does a byte."""


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("shape", ALIGNED)
def test_is_bitsandbytes_bit_for_bit(case, shape, nested):
    from bitsandbytes.functional import dequantize_4bit

    packed, state = quantized(shape, case.dtype, nested=nested, device=case.device)
    expected = dequantize_4bit(packed, state)
    weight = NF4Weight.of(packed, state)
    ones = torch.ones(shape[0], device=case.device)
    for ours in (dequantize(weight), dequantize(weight, row_scale=ones)):
        assert ours.dtype == case.dtype and torch.equal(ours, expected)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("shape", ALIGNED + SPANNING)
def test_row_scale_multiplies_absmax(case, shape, nested):
    weight = nf4(shape, case.dtype, nested=nested, device=case.device)
    codes, scales = codes_and_scales(weight)
    row_scale = torch.rand(shape[0], device=case.device) + 0.5
    assert torch.equal(dequantize(weight), (codes * scales).to(case.dtype))
    expected = (codes * (scales * row_scale[:, None])).to(case.dtype)
    assert torch.equal(dequantize(weight, row_scale=row_scale), expected)


@pytest.mark.parametrize("blocksize", [128, 256, 2048])
def test_larger_blocks(case, blocksize):
    weight = nf4((5, 256), case.dtype, blocksize=blocksize, device=case.device)
    assert torch.equal(dequantize(weight).double(), dense(weight))


@pytest.mark.parametrize("rank", [1, 3, 16, 40])
@pytest.mark.parametrize("shape", [(1, 64), (3, 96), (70, 130), (5, 1)])
def test_low_rank_update_is_as_exact_as_plain_pytorch(case, shape, rank):
    weight = nf4(shape, case.dtype, device=case.device)
    row_scale = torch.rand(shape[0], device=case.device) + 0.5
    codes, scales = codes_and_scales(weight)
    for factors in (torch.float32, case.dtype):
        left = torch.randn(shape[0], rank, device=case.device).to(factors)
        right = torch.randn(rank, shape[1], device=case.device).to(factors)
        ours = dequantize(weight, row_scale=row_scale, low_rank=(left, right))
        plain = (codes * (scales * row_scale[:, None]) + left.float() @ right.float()).to(case.dtype)
        exact = codes.double() * scales.double() * row_scale[:, None].double() + left.double() @ right.double()
        assert_as_exact(ours, plain, exact, 1e-6)


def test_is_rounded_once(case):
    weight = nf4((33, 192), case.dtype, device=case.device)
    how = {
        "row_scale": torch.rand(33, device=case.device) + 0.5,
        "low_rank": (torch.randn(33, 5, device=case.device), torch.randn(5, 192, device=case.device)),
    }
    assert torch.equal(dequantize(weight, **how), dequantize(weight, **how, dtype=torch.float32).to(case.dtype))


def test_factors_may_lie_anyhow_and_differ_in_type(case):
    weight = nf4((7, 64), case.dtype, device=case.device)
    left = torch.randn(3, 7, device=case.device).t()
    right = torch.randn(64, 6, device=case.device)[:, ::2].t().to(case.dtype)
    ours = dequantize(weight, low_rank=(left, right), dtype=torch.float32)
    tidy = dequantize(weight, low_rank=(left.contiguous(), right.float().contiguous()), dtype=torch.float32)
    torch.testing.assert_close(ours, tidy, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("updated", [True, False])
def test_out_is_filled_and_nothing_beside_it(case, updated):
    weight = nf4((5, 192), case.dtype, device=case.device)
    update = (torch.ones(5, 2, device=case.device), torch.ones(2, 192, device=case.device)) if updated else None
    memory = torch.full((7, 200), 9.0, dtype=case.dtype, device=case.device)
    out = memory[1:6, 4:196]
    assert dequantize(weight, low_rank=update, out=out) is out
    assert torch.equal(out, dequantize(weight, low_rank=update))
    out.fill_(9.0)
    assert (memory == 9.0).all()


def test_twin_gives_the_same_whatever_its_blocks(monkeypatch):
    weight = nf4((70, 128), torch.bfloat16)
    how = {"row_scale": torch.rand(70), "low_rank": (torch.randn(70, 3), torch.randn(3, 128))}
    whole, scaled = dequantize(weight, **how), dequantize(weight, row_scale=how["row_scale"])
    for elements in (1, 128 * 9, 128 * 69):
        monkeypatch.setattr(torch_ops, "BLOCK_ELEMENTS", elements)
        torch.testing.assert_close(dequantize(weight, **how), whole, rtol=2**-7, atol=1e-6)
        assert torch.equal(dequantize(weight, row_scale=how["row_scale"], out=torch.empty_like(scaled)), scaled)


@pytest.mark.parametrize("shape", [(3, 64), (3, 96)])
def test_fp64_is_computed_in_fp64(shape):
    weight = nf4(shape, torch.float32)
    row_scale, left, right = (torch.rand(size, dtype=torch.float64) for size in (3, (3, 2), (2, shape[1])))
    exact = dense(weight) * row_scale[:, None] + left @ right
    ours = dequantize(weight, row_scale=row_scale, low_rank=(left, right), dtype=torch.float64)
    torch.testing.assert_close(ours, exact, rtol=1e-14, atol=1e-14)
    assert torch.equal(dequantize(weight, dtype=torch.float64), dense(weight))


def test_autocast_does_not_reach_in():
    weight = nf4((5, 64), torch.float32)
    update = (torch.randn(5, 3), torch.randn(3, 64))
    with torch.autocast("cpu", torch.bfloat16):
        ours = dequantize(weight, low_rank=update)
    assert torch.equal(ours, dequantize(weight, low_rank=update))


def test_block_scales_are_bitsandbytes_own():
    packed, state = quantized((70, 512), torch.float32)
    from bitsandbytes.functional import dequantize_blockwise

    expected = dequantize_blockwise(state.absmax, state.state2) + state.offset
    assert torch.equal(block_scales(NF4Weight.of(packed, state)), expected)


def test_bytes_stored_in_a_wider_type_are_read():
    from bitsandbytes.functional import quantize_4bit

    matrix = torch.randn(4, 64)
    wide = NF4Weight.of(*quantize_4bit(matrix, quant_type="nf4", quant_storage=torch.bfloat16))
    assert torch.equal(dequantize(wide), dequantize(NF4Weight.of(*quantize_4bit(matrix, quant_type="nf4"))))


def test_other_kinds_are_refused():
    from bitsandbytes.functional import quantize_4bit

    with pytest.raises(ValueError, match="fp4"):
        NF4Weight.of(*quantize_4bit(torch.randn(4, 64), quant_type="fp4"))
    with pytest.raises(ValueError, match="matrix"):
        NF4Weight.of(*quantize_4bit(torch.randn(2, 4, 64), quant_type="nf4"))
