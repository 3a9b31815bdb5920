"""No kernel reads or writes beyond its arguments, and rows or magnitudes of zeros give no NaN.

Every argument in floating point lies in the middle of a larger piece of memory full of NaN, its rows apart: a value
from beyond an edge is seen in the result, a write there as a missing NaN. On a GPU it would be silent, or an illegal
access.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from nf4_oracle import assert_as_exact, dense, nf4

from qdora_fast.engine.kernels import (
    NF4Weight,
    column_dot,
    dequantize,
    glu_backward,
    glu_forward,
    merge,
    row_norms,
)

PAD = 70
SHAPES = [(1, 64), (3, 130), (5, 33)]
RANKS = [3, 20]


class Fence:
    """Makes such arguments, and knows afterwards whether anything was written around them."""

    def __init__(self):
        self.surrounded = []

    def __call__(self, values):
        """A copy of these values; their own shape and type, rows apart."""
        shape = values.shape if values.dim() else (1,)
        around = torch.full([size + 2 * PAD for size in shape], torch.nan, dtype=values.dtype, device=values.device)
        inside = around
        for dimension in range(len(shape)):
            inside = inside.narrow(dimension, PAD, shape[dimension])
        inside.copy_(values)
        self.surrounded.append((around, inside))
        return inside if values.dim() else inside[0]

    def assert_nothing_written_around(self):
        for around, inside in self.surrounded:
            beside = around.clone()
            view = beside
            for dimension in range(inside.dim()):
                view = view.narrow(dimension, PAD, inside.shape[dimension])
            view.fill_(torch.nan)
            assert beside.isnan().all()


@pytest.fixture
def fence():
    made = Fence()
    yield made
    made.assert_nothing_written_around()


def fenced_weight(weight, fence):
    """The same weight, each of its parts in floating point within NaN."""
    parts = {field.name: getattr(weight, field.name) for field in dataclasses.fields(NF4Weight)}
    fenced = {k: fence(v) for k, v in parts.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    return dataclasses.replace(weight, **fenced)


def factors(shape, rank, case, seed=0):
    """A [r, in] and B [out, r]."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, shape[1], generator=generator), torch.randn(shape[0], rank, generator=generator)
    return a.to(case.device), b.to(case.device)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_dequantize_reads_and_writes_within(case, fence, shape, rank, nested):
    weight = nf4(shape, case.dtype, nested=nested, device=case.device)
    right, left = factors(shape, rank, case)
    scale = torch.rand(shape[0], device=case.device)
    out = fence(torch.zeros(shape, dtype=case.dtype, device=case.device))
    plain = dequantize(weight, row_scale=scale, low_rank=(left, right))
    fenced = fenced_weight(weight, fence)
    dequantize(fenced, row_scale=fence(scale), low_rank=(fence(left), fence(right)), out=out)
    torch.testing.assert_close(out, plain, rtol=2 * case.eps, atol=1e-6)
    exact = scale.double()[:, None] * dense(weight, rounded=False) + left.double() @ right.double()
    assert_as_exact(out, plain, exact, case.eps)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("packed", [True, False])
def test_norms_read_within(case, fence, shape, rank, packed):
    weight = nf4(shape, case.dtype, device=case.device)
    a, b = factors(shape, rank, case)
    given = weight if packed else dense(weight).to(case.device, case.dtype)
    fenced = fenced_weight(weight, fence) if packed else fence(given)
    torch.testing.assert_close(row_norms(fenced, fence(a), fence(b), 0.5), row_norms(given, a, b, 0.5))
    torch.testing.assert_close(row_norms(fenced), row_norms(given))


@pytest.mark.parametrize("shape", SHAPES)
def test_merge_reads_and_writes_within(case, fence, shape):
    weight = nf4(shape, case.dtype, device=case.device)
    a, b = factors(shape, 3, case)
    magnitude = torch.rand(shape[0], device=case.device)
    plain, out = torch.empty(shape, dtype=case.dtype, device=case.device), None
    norms = merge(weight, a, b, 0.5, magnitude, plain)
    out = fence(torch.zeros_like(plain))
    got = merge(fenced_weight(weight, fence), fence(a), fence(b), 0.5, fence(magnitude), out)
    torch.testing.assert_close(got, norms)
    torch.testing.assert_close(out, plain, rtol=2 * case.eps, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (5, 130), (33, 64)])
def test_sums_and_activations_read_within(case, fence, shape):
    generator = torch.Generator().manual_seed(0)
    dh, e, g = (torch.randn(shape, generator=generator).to(case.device, case.dtype) for _ in range(3))
    torch.testing.assert_close(column_dot(fence(e), fence(g)), column_dot(e, g))
    torch.testing.assert_close(glu_forward(fence(e), fence(g), "silu"), glu_forward(e, g, "silu"))
    ours, plain = glu_backward(fence(dh), fence(e), fence(g), "silu", True), glu_backward(dh, e, g, "silu", True)
    for got, wanted in zip(ours, plain, strict=True):
        torch.testing.assert_close(got, wanted, rtol=case.eps, atol=1e-6)


def test_rows_without_length_and_magnitudes_of_zero(case):
    """Row 0: W and B are 0. Row 1: the update cancels W. Row 2: m is 0. The others: as they are."""
    from bitsandbytes.functional import quantize_4bit

    matrix = torch.randn(6, 64, generator=torch.Generator().manual_seed(1)).to(case.device, case.dtype)
    matrix[0] = 0
    weight = NF4Weight.of(*quantize_4bit(matrix, compress_statistics=False, quant_type="nf4"))
    a, b = factors((6, 64), 3, case)
    a[0] = dense(weight, rounded=False)[1].float()
    b[0], b[1] = 0, torch.tensor([-2.0, 0, 0])
    magnitude = torch.tensor([3.0, 3.0, 0.0, 1.0, -1.0, 2.0], device=case.device)
    out = torch.full((6, 64), torch.nan, dtype=case.dtype, device=case.device)
    norms = merge(weight, a, b, 0.5, magnitude, out)
    assert norms[0] == 0 and norms[1] == 0 and (norms[2:] > 0).all()
    full = dense(weight, rounded=False) + 0.5 * b.double() @ a.double()
    scale = torch.where(norms > 0, magnitude / norms, 1.0).double()
    torch.testing.assert_close(out.double(), scale[:, None] * full, rtol=2 * case.eps, atol=2 * case.eps)
    assert not out[:3].any()


def test_the_fence_is_seen():
    """A sum over one column too many is a NaN, and a write there is found."""
    fence = Fence()
    inside = fence(torch.ones(3, 4))
    assert torch.as_strided(inside, (3, 5), inside.stride(), inside.storage_offset()).sum().isnan()
    fence.assert_nothing_written_around()
    torch.as_strided(inside, (1,), (1,), inside.storage_offset() + 4).zero_()
    with pytest.raises(AssertionError):
        fence.assert_nothing_written_around()
