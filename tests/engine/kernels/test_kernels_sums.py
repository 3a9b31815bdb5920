"""Column sums and gated activations against autograd and sums in fp64."""

from __future__ import annotations

import pytest
import torch
from nf4_oracle import assert_as_exact
from torch.nn import functional

from qdora_fast.engine.kernels import column_dot, glu_backward, glu_forward, torch_ops, triton_reduce

ACTIVATIONS = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}
SHAPES = [(0, 5), (1, 1), (5, 130), (33, 64), (triton_reduce.SPAN + 7, 3)]


def randoms(count, shape, device, dtype, seed=0):
    """Tensors [T, n] of values that fp16 holds as well."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(count)]


@pytest.mark.parametrize("shape", SHAPES)
def test_column_dot_does_not_round_products(case, shape):
    a, b = randoms(2, shape, case.device, case.dtype)
    exact = (a.double() * b.double()).sum(0)
    ours = column_dot(a, b)
    assert ours.dtype == torch.float32
    assert_as_exact(ours, (a.float() * b.float()).sum(0), exact, 1e-6)
    assert torch.equal(column_dot(a, b), ours)


def test_column_dot_takes_rows_that_lie_apart(case):
    wide, tall = randoms(1, (9, 40), case.device, case.dtype) + randoms(1, (16, 9), case.device, case.dtype)
    a, b = wide[:, 3:19], tall.t()
    assert torch.equal(column_dot(a, b), column_dot(a.contiguous(), b.contiguous()))


def test_column_dot_of_two_types(case):
    a, b = randoms(2, (9, 16), case.device, torch.float32)
    torch.testing.assert_close(column_dot(a, b.to(case.dtype)), (a * b.to(case.dtype)).sum(0), rtol=1e-5, atol=1e-5)


def test_fp64_is_computed_in_fp64():
    a, b, dh = randoms(3, (9, 16), "cpu", torch.float64)
    assert torch.equal(column_dot(a, b), (a * b).sum(0)) and column_dot(a, b).dtype == torch.float64
    assert torch.equal(glu_forward(a, b, "silu"), functional.silu(a) * b)
    assert glu_backward(dh, a, b, "silu", True).dot_e.dtype == torch.float64


def gradients_in_fp64(dh, e, g, activation):
    """h, de, dg, dot_e, dot_g by autograd."""
    e, g = (x.double().requires_grad_() for x in (e, g))
    h = ACTIVATIONS[activation](e) * g
    h.backward(dh.double())
    return [x.detach() for x in (h, e.grad, g.grad, (e.grad * e).sum(0), (g.grad * g).sum(0))]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_glu_is_autograd_rounded_once(case, shape, activation):
    dh, e, g = randoms(3, shape, case.device, case.dtype)
    exact = gradients_in_fp64(dh, e, g, activation)
    ours = glu_backward(dh, e, g, activation, True)
    for name, result, expected in zip(ours._fields, ours, exact, strict=True):
        dtype = torch.float32 if name.startswith("dot") else case.dtype
        assert result.dtype == dtype, name
        assert_as_exact(result, expected.to(dtype), expected, 2e-6)
    assert_as_exact(glu_forward(e, g, activation), exact[0].to(case.dtype), exact[0], 1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_glu_without_sums_gives_the_same_bits(case, activation):
    dh, e, g = randoms(3, (5, 130), case.device, case.dtype)
    bare, full = (glu_backward(dh, e, g, activation, dots) for dots in (False, True))
    assert bare.dot_e is None and bare.dot_g is None
    assert all(torch.equal(x, y) for x, y in zip(bare[:3], full[:3], strict=True))


def test_glu_takes_rows_that_lie_apart_and_changes_nothing(case):
    both, dh = randoms(1, (9, 40), case.device, case.dtype) + randoms(1, (16, 9), case.device, case.dtype)
    e, g, dh = both[:, :16], both[:, 20:36], dh.t()
    before = [x.clone() for x in (both, dh)]
    ours = glu_backward(dh, e, g, "silu", True)
    tidy = glu_backward(dh.contiguous(), e.contiguous(), g.contiguous(), "silu", True)
    for x, y in zip((*ours, glu_forward(e, g, "silu")), (*tidy, tidy.h), strict=True):
        torch.testing.assert_close(x, y, rtol=case.eps, atol=1e-6)  # another loop of PyTorch's, another exp
    assert all(torch.equal(x, y) for x, y in zip((both, dh), before, strict=True))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_glu_may_spend_the_gradient_it_is_given(case, activation):
    dh, e, g = randoms(3, (33, 40), case.device, case.dtype)
    kept = glu_backward(dh, e, g, activation, True)
    spent = glu_backward(dh, e, g, activation, True, spend_dh=True)
    assert spent.dg.data_ptr() == dh.data_ptr()
    assert all(torch.equal(x, y) for x, y in zip(spent, kept, strict=True))


@pytest.mark.filterwarnings("ignore:overflow")  # numpy's, in the interpreter: exp is infinite and its inverse 0
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_glu_far_from_zero_is_linear_or_nothing(case, activation):
    e = torch.tensor([[-60.0, 60.0, 0.0]], device=case.device).to(case.dtype)
    ones = torch.ones_like(e)
    ours = glu_backward(ones, e, ones, activation, True)
    torch.testing.assert_close(ours.h, e.clamp_min(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.de, torch.tensor([[0.0, 1.0, 0.5]], device=case.device).to(case.dtype))


def test_twins_give_the_same_whatever_their_blocks(monkeypatch):
    dh, e, g = randoms(3, (33, 64), "cpu", torch.bfloat16)
    dot, full = column_dot(e, g), glu_backward(dh, e, g, "gelu", True)
    monkeypatch.setattr(torch_ops, "BLOCK_ELEMENTS", 64 * 5)
    monkeypatch.setattr(torch_ops, "GLU_ELEMENTS", 64 * 5)
    torch.testing.assert_close(column_dot(e, g), dot, rtol=1e-5, atol=1e-5)
    for x, y in zip(glu_backward(dh, e, g, "gelu", True), full, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_an_unknown_activation_is_named(case):
    e, g = randoms(2, (2, 4), case.device, case.dtype)
    with pytest.raises(ValueError, match="'relu'"):
        glu_forward(e, g, "relu")
    with pytest.raises(ValueError, match="'relu'"):
        glu_backward(e, e, g, "relu", False)
