"""The specification against an outside oracle: PEFT's own layers in fp64, differentiated by autograd."""

from __future__ import annotations

import pytest
import torch
from tiny_models import bound, exact_layer, one_layer, parameters_of, random_x, run_layer, weight_of
from torch.nn import functional

from qdora_fast.engine import reference

F64 = torch.float64
SHAPES = [(24, 40), (7, 129), (33, 5), (64, 64), (1, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("method", ["dora", "dora-rslora", "lora", "lora-rslora"])
def test_output_and_every_gradient_are_pefts(shape: tuple[int, int], bias: bool, method: str) -> None:
    _, layer = one_layer(*shape, dtype=F64, bias=bias, use_dora="dora" in method, use_rslora="rslora" in method)
    x = random_x(3, 5, shape[1], dtype=F64)
    theirs, ours = run_layer(layer, x), exact_layer(layer, x)
    assert set(ours) == ({"y", "dx", "dA", "dB", "dm"} if "dora" in method else {"y", "dx", "dA", "dB"})
    assert all(float(value.abs().max()) > 1e-3 for value in ours.values())  # nothing is compared that is zero anyway
    bound(ours, theirs, None, 1e-11)


def test_a_negative_magnitude_turns_the_row_round() -> None:
    _, layer = one_layer(dtype=F64, bias=True)
    m = parameters_of(layer)["m"]
    m.data[::3] *= -1
    x = random_x(6, 40, dtype=F64)
    bound(exact_layer(layer, x), run_layer(layer, x), None, 1e-11)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("method", ["dora", "lora"])
def test_pefts_form_of_dropout_with_the_same_random_numbers(bias: bool, method: str) -> None:
    _, layer = one_layer(dtype=F64, bias=bias, lora_dropout=0.3, use_dora=method == "dora")
    x = random_x(2, 7, 40, dtype=F64)
    torch.manual_seed(11)
    theirs = run_layer(layer.train(), x)
    torch.manual_seed(11)
    ours = exact_layer(layer, x, dropped=lambda leaf: functional.dropout(leaf, 0.3), peft_dropout=True)
    bound(ours, theirs, None, 1e-11)
    torch.manual_seed(11)
    other = exact_layer(layer, x, dropped=lambda leaf: functional.dropout(leaf, 0.3), peft_dropout=False)
    same = torch.allclose(other["y"], theirs["y"])
    assert same == (method == "lora")  # for DoRA the two forms are different functions


def test_our_form_of_dropout_is_loras_with_every_row_scaled() -> None:
    """y − b = g ⊙ (LoRA's y − b), PEFT's LoRA layer being the oracle; with g = 1 they are the same layer."""
    _, dora = one_layer(dtype=F64, bias=True, lora_dropout=0.3)
    _, lora = one_layer(dtype=F64, bias=True, lora_dropout=0.3, use_dora=False)
    a, b, m = parameters_of(dora).values()
    lora.lora_A["default"].weight.data, lora.lora_B["default"].weight.data = a.data, b.data
    x, bias = random_x(4, 40, dtype=F64), dora.base_layer.bias.detach()
    norms = reference.row_norms(weight_of(dora), a, b, 2.0)
    for scale in (torch.ones(24, dtype=F64), m.detach() / norms):
        m.data = scale * norms
        torch.manual_seed(2)
        theirs = run_layer(lora.train(), x)
        torch.manual_seed(2)
        ours = exact_layer(dora, x, dropped=lambda leaf: functional.dropout(leaf, 0.3))
        torch.testing.assert_close(ours["y"] - bias, scale * (theirs["y"] - bias), rtol=1e-11, atol=1e-11)
        if bool((scale == 1).all()):
            bound({name: ours[name] for name in theirs}, theirs, None, 1e-11)


def test_a_row_of_zeros_is_not_scaled_and_makes_no_nan() -> None:
    _, layer = one_layer(dtype=F64, fresh=True, zero_rows=(2, 5))
    rows = torch.tensor([2, 5])
    x = random_x(4, 40, dtype=F64)
    assert not torch.isfinite(run_layer(layer, x)["y"]).all()  # PEFT divides 0 by 0
    fresh = exact_layer(layer, x, unscaled_rows=rows)
    assert all(torch.isfinite(value).all() for value in fresh.values())
    layer.lora_B["default"].weight.data.normal_()
    moved = exact_layer(layer, x, unscaled_rows=rows)
    a, b = (parameters_of(layer)[name].detach() for name in "AB")
    torch.testing.assert_close(moved["y"][:, rows], (2.0 * x.detach() @ a.T @ b.T)[:, rows])
    assert not moved["dm"][rows].any() and moved["dm"][[0, 1, 3]].all()
    assert torch.isfinite(moved["dA"]).all() and torch.isfinite(moved["dB"]).all()


def test_norms_are_exact_for_16_bit_weights_and_detached() -> None:
    generator = torch.Generator().manual_seed(0)
    w, a, b = (torch.randn(s, generator=generator).bfloat16() for s in ((9, 300), (4, 300), (9, 4)))
    a.requires_grad_()
    norms = reference.row_norms(w, a, b, 0.5)
    exact = torch.linalg.vector_norm(w.double() + 0.5 * b.double() @ a.double(), dim=1)
    assert norms.dtype == torch.float32 and not norms.requires_grad
    torch.testing.assert_close(norms.double(), exact, rtol=1e-6, atol=0)


def test_no_gradient_flows_through_the_norm() -> None:
    """dA and dB are those of a layer whose g is a constant (DoRA paper, section 4.3)."""
    _, layer = one_layer(dtype=F64)
    x = random_x(6, 40, dtype=F64)
    a, b, m = (p.detach().clone().requires_grad_() for p in parameters_of(layer).values())
    g = m.detach() / reference.row_norms(weight_of(layer), a, b, 2.0)
    y = g * (x @ weight_of(layer).T + 2.0 * x @ a.T @ b.T)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=F64)
    expected = torch.autograd.grad(y, [a, b], dy)
    ours = exact_layer(layer, x)
    bound({name: ours[name] for name in ("dA", "dB")}, dict(zip(("dA", "dB"), expected, strict=True)), None, 1e-11)


@pytest.mark.parametrize("method", ["dora", "lora"])
def test_gradcheck(method: str) -> None:
    """Finite differences. For DoRA in x and m alone: A and B move the norm, which is detached on purpose."""
    _, layer = one_layer(5, 7, dtype=F64, bias=True)
    a, b, m = (p.detach().clone().requires_grad_() for p in parameters_of(layer).values())
    w, bias, x = weight_of(layer), layer.base_layer.bias.detach(), random_x(3, 7, dtype=F64)
    if method == "dora":
        assert torch.autograd.gradcheck(
            lambda x, m: reference.adapted_linear(x, w, bias, a.detach(), b.detach(), m, 1.5), (x, m)
        )
    else:
        assert torch.autograd.gradcheck(
            lambda x, a, b: reference.adapted_linear(x, w, bias, a, b, None, 1.5), (x, a, b)
        )


def test_a_16_bit_layer_keeps_its_type_as_plain_lora() -> None:
    w, a, b, x = (torch.randn(s).bfloat16() for s in ((6, 8), (2, 8), (6, 2), (3, 8)))
    assert reference.adapted_linear(x, w, None, a, b, None, 1.0).dtype == torch.bfloat16
