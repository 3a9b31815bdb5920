"""Row norms of W + s·B·A: as exact as fp32 allows, and the same bits with B = 0 as without B."""

from __future__ import annotations

import pytest
import torch
from nf4_oracle import assert_as_exact, dense, nf4

from qdora_fast.engine.kernels import dequantize, merge, row_norms, torch_ops, triton_norms

SHAPES = [(1, 64), (3, 130), (70, 96), (5, 1)]


def factors(shape, rank, device, dtype=torch.float32):
    """A [r, in] and B [out, r]."""
    torch.manual_seed(rank)
    a, b = torch.randn(rank, shape[1]), torch.randn(shape[0], rank)
    return a.to(device, dtype), b.to(device, dtype)


@pytest.mark.parametrize("rank", [1, 3, 16, 40])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("packed", [True, False])
def test_is_as_exact_as_plain_pytorch(case, shape, rank, packed):
    quantised = nf4(shape, case.dtype, device=case.device)
    exact_weight = dense(quantised, rounded=not packed)
    weight = quantised if packed else exact_weight.to(case.dtype)
    for dtype in (torch.float32, case.dtype):
        a, b = factors(shape, rank, case.device, dtype)
        ours = row_norms(weight, a, b, 0.3)
        plain = torch.linalg.vector_norm(exact_weight.float() + 0.3 * (b.float() @ a.float()), dim=1)
        exact = torch.linalg.vector_norm(exact_weight + 0.3 * (b.double() @ a.double()), dim=1)
        assert ours.dtype == torch.float32
        assert_as_exact(ours, plain, exact, 4e-7)


@pytest.mark.parametrize("shape", [(33, 64), (3, 130), (2, 2 * triton_norms.SPAN + 70)])
@pytest.mark.parametrize("packed", [True, False])
def test_a_zero_b_gives_the_bits_of_no_update(case, shape, packed):
    weight = nf4(shape, case.dtype, device=case.device)
    weight = weight if packed else dense(weight).to(case.dtype)
    plain = row_norms(weight)
    exact = torch.linalg.vector_norm(dense(nf4(shape, case.dtype), rounded=not packed), dim=1)
    torch.testing.assert_close(plain.cpu().double(), exact, rtol=1e-6, atol=0)
    for rank in (1, 16, 40):
        for dtype in (torch.float32, case.dtype):
            a, b = factors(shape, rank, case.device, dtype)
            assert torch.equal(row_norms(weight, 1e3 * a, torch.zeros_like(b), 2.0), plain)


def test_rows_wider_than_a_span_are_added_up(case):
    shape = (3, triton_norms.SPAN + 70)
    weight = nf4(shape, case.dtype, device=case.device)
    a, b = factors(shape, 3, case.device)
    exact = torch.linalg.vector_norm(dense(weight, rounded=False) + b.double() @ a.double(), dim=1)
    torch.testing.assert_close(row_norms(weight, a, b, 1.0).double(), exact, rtol=1e-6, atol=0)


def test_a_row_of_zeros_has_no_length(case):
    weight = torch.randn(5, 64, device=case.device).to(case.dtype)
    weight[2] = 0
    norms = row_norms(weight)
    assert norms[2] == 0 and (norms[[0, 1, 3, 4]] > 1).all()


def test_weight_and_factors_may_lie_anyhow(case):
    weight = torch.randn(64, 7, device=case.device).to(case.dtype).t()
    a, b = torch.randn(64, 3, device=case.device).t(), torch.randn(3, 7, device=case.device).t()
    tidy = row_norms(weight.contiguous(), a.contiguous(), b.contiguous(), 0.5)
    torch.testing.assert_close(row_norms(weight, a, b, 0.5), tidy, rtol=1e-6, atol=0)


def test_nothing_given_is_changed(case):
    weight = torch.randn(5, 64, device=case.device)
    a, b = factors((5, 64), 3, case.device)
    before = [x.clone() for x in (weight, a, b)]
    row_norms(weight, a, b, 2.0)
    assert all(torch.equal(x, y) for x, y in zip((weight, a, b), before, strict=True))


def test_fp64_is_computed_in_fp64(case):
    a, b = factors((5, 64), 3, case.device, torch.float64)
    weight = torch.randn(5, 64, dtype=torch.float64, device=case.device)
    packed = nf4((5, 64), torch.float32, device=case.device)
    for given, exact in ((weight, weight), (packed, dense(packed, rounded=False))):
        expected = torch.linalg.vector_norm(exact + 0.3 * b @ a, dim=1)
        torch.testing.assert_close(row_norms(given, a, b, 0.3), expected, rtol=1e-14, atol=0)


def test_twin_gives_the_same_whatever_its_blocks(monkeypatch):
    weight = nf4((70, 128), torch.bfloat16)
    a, b = factors((70, 128), 3, "cpu")
    whole = row_norms(weight, a, b, 0.5)
    monkeypatch.setattr(torch_ops, "BLOCK_ELEMENTS", 128 * 9)
    torch.testing.assert_close(row_norms(weight, a, b, 0.5), whole, rtol=1e-6, atol=0)


def test_autocast_does_not_reach_in():
    weight = nf4((5, 64), torch.float32)
    a, b = factors((5, 64), 3, "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        ours = row_norms(weight, a, b, 0.5)
    assert torch.equal(ours, row_norms(weight, a, b, 0.5))


@pytest.mark.parametrize("shape", [(1, 64), (70, 96), (33, 128)])
def test_norms_and_the_merged_weight_at_once_are_what_they_are_one_by_one(case, shape):
    weight = nf4(shape, case.dtype, device=case.device)
    a, b = factors(shape, 3, case.device)
    magnitude = torch.rand(shape[0], device=case.device) - 0.2
    out = torch.full(shape, torch.nan, dtype=case.dtype, device=case.device)
    norms = merge(weight, a, b, 0.5, magnitude, out)
    torch.testing.assert_close(norms, row_norms(weight, a, b, 0.5), rtol=0, atol=0)
    scale = magnitude / norms
    apart = dequantize(weight, row_scale=scale, low_rank=(b * (0.5 * scale)[:, None], a))
    exact = scale.double()[:, None] * (dense(weight, rounded=False) + 0.5 * b.double() @ a.double())
    assert_as_exact(out, apart, exact, 1e-6)
    assert_as_exact(apart, out, exact, 1e-6)
