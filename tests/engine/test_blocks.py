"""The gated MLP as one function against the same three layers one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import EPS, bound, random_x, slot_for
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from qdora_fast.engine import reference
from qdora_fast.engine.blocks import gated_mlp
from qdora_fast.engine.cache import LayerCache
from qdora_fast.engine.frozen import Dense
from qdora_fast.engine.functions import Projection, adapted_group

F64 = torch.float64
HIDDEN, WIDE, RANK, SCALING = 40, 72, 3, 0.7
ACTIVATIONS = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda e: functional.gelu(e, approximate="tanh"),
}


class Mlp:
    """Gate, up and down with their adapters; weights in `dtype`, adapters in `adapters`."""

    def __init__(
        self, dtype: torch.dtype = F64, adapters: torch.dtype | None = None, *, dora: bool = True, bias: bool = False
    ) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=F64)

        self.weights, self.parameters = [], []
        for out, width in ((WIDE, HIDDEN), (WIDE, HIDDEN), (HIDDEN, WIDE)):
            w, a, b = random(out, width) / width**0.5, random(RANK, width) / width**0.5, random(out, RANK) / 2
            m = reference.row_norms(w, a, b, SCALING) * (1 + 0.1 * random(out))
            self.weights.append(w.to(dtype))
            self.parameters += [p.to(adapters or dtype).requires_grad_() for p in (a, b, m)]
            if not dora:
                self.parameters[-1] = None
        self.biases = [None, None, random(HIDDEN).to(dtype) if bias else None]

    def projections(self, form: str) -> list[Projection]:
        """As layers.py makes them."""
        made = []
        for i, weight in enumerate(self.weights):
            a, b, m = self.parameters[3 * i : 3 * i + 3]
            cache = LayerCache(Dense(weight), slot_for(weight), decomposed=m is not None)
            trains = m is not None and m.requires_grad
            made.append(Projection(cache.current(a, b, m, SCALING), self.biases[i], trains, form=form))
        return made

    def block(self, x: Tensor, activation: str = "silu", form: str = "merged") -> Tensor:
        """y by the fused block."""
        return gated_mlp(x, self.projections(form), self.parameters, activation, x.dtype)

    def one_by_one(self, x: Tensor, activation: str = "silu", form: str = "merged") -> Tensor:
        """y by our fused layers, one after the other."""

        def layer(i: int, value: Tensor) -> Tensor:
            projection, types = self.projections(form)[i], {"dtype": x.dtype, "out_dtype": x.dtype}
            return adapted_group(value, [projection], self.parameters[3 * i : 3 * i + 3], **types)[0]

        return layer(2, ACTIVATIONS[activation](layer(0, x)) * layer(1, x))

    def specified(self, x: Tensor, activation: str = "silu", dtype: torch.dtype = F64) -> tuple[Tensor, list[Any]]:
        """y by reference.py in `dtype`, and the leaves it was made from."""
        leaves = [None if p is None else p.detach().to(dtype).requires_grad_(p.requires_grad) for p in self.parameters]
        leaf = x.detach().to(dtype).requires_grad_(x.requires_grad)

        def layer(i: int, value: Tensor) -> Tensor:
            a, b, m = leaves[3 * i : 3 * i + 3]
            bias = None if self.biases[i] is None else self.biases[i].to(dtype)
            return reference.adapted_linear(value, self.weights[i].to(dtype), bias, a, b, m, SCALING).to(dtype)

        return layer(2, ACTIVATIONS[activation](layer(0, leaf)) * layer(1, leaf)), [leaf, *leaves]


def _everything(y: Tensor, leaves: list[Any]) -> dict[str, Tensor]:
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=F64).to(y.dtype)
    named = {f"d{i}": leaf for i, leaf in enumerate(leaves) if leaf is not None and leaf.requires_grad}
    gradients = torch.autograd.grad(y, list(named.values()), dy)
    return {"y": y.detach().double(), **{n: g.double() for n, g in zip(named, gradients, strict=True)}}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("form", ["merged", "folded"])
@pytest.mark.parametrize("kind", ["dora", "lora", "down has a bias"])
def test_output_and_gradients_are_the_specifications(activation: str, form: str, kind: str) -> None:
    mlp = Mlp(dora=kind != "lora", bias="bias" in kind)
    x = random_x(2, 7, HIDDEN, dtype=F64)
    ours = _everything(mlp.block(x, activation, form), [x, *mlp.parameters])
    assert len(ours) == (8 if kind == "lora" else 11)
    bound(ours, _everything(*mlp.specified(x, activation)), None, 1e-10)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("form", ["merged", "folded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_no_further_from_exact_than_autograd_in_the_same_type(activation: str, form: str, dtype: torch.dtype) -> None:
    mlp = Mlp(dtype, torch.float32)
    x = random_x(3, 31, HIDDEN, dtype=dtype)
    exact = _everything(*mlp.specified(x, activation))
    plain = _everything(*mlp.specified(x, activation, dtype))
    ours = _everything(mlp.block(x, activation, form), [x, *mlp.parameters])
    bound(ours, exact, plain, EPS[dtype] / 2)


@pytest.mark.parametrize("frozen", [[0], [3], [2, 5], [8], [9], [1, 2, 3, 4, 5, 6, 7, 8], [0, 9]], ids=str)
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen: list[int]) -> None:
    mlp, x = Mlp(), random_x(5, HIDDEN, dtype=F64)
    leaves = [x, *mlp.parameters]
    for place in frozen:
        leaves[place].requires_grad_(False)
    ours = _everything(mlp.block(x), leaves)
    assert len(ours) == 11 - len(frozen)
    bound(ours, _everything(*mlp.specified(x)), None, 1e-10)


@pytest.mark.parametrize("shape", ["one token", "one row of a batch", "not contiguous"])
def test_inputs_of_every_shape(shape: str) -> None:
    x = {
        "one token": random_x(1, 1, HIDDEN, dtype=F64),
        "one row of a batch": random_x(1, 13, HIDDEN, dtype=F64),
        "not contiguous": random_x(HIDDEN, 6, 3, dtype=F64).permute(2, 1, 0),
    }[shape]
    mlp = Mlp()
    bound(_everything(mlp.block(x), [x, *mlp.parameters]), _everything(*mlp.specified(x)), None, 1e-10)


def test_without_gradients_the_same_bits() -> None:
    mlp, x = Mlp(torch.float32), random_x(6, HIDDEN)
    with torch.no_grad():
        silent = mlp.block(x)
    assert not silent.requires_grad and torch.equal(silent, mlp.block(x))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_gives_the_same_gradients(use_reentrant: bool) -> None:
    mlp, x = Mlp(torch.float32), random_x(2, 9, HIDDEN)
    plain = mlp.block(x)
    dy = torch.randn(plain.shape, generator=torch.Generator().manual_seed(9))
    results = []
    for y in (plain, checkpoint(mlp.block, x, use_reentrant=use_reentrant)):
        for leaf in (x, *mlp.parameters):
            leaf.grad = None
        y.backward(dy)
        results.append([y.detach(), *(leaf.grad for leaf in (x, *mlp.parameters))])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_fewer_bytes_are_saved_than_layer_by_layer() -> None:
    mlp, x = Mlp(torch.float32), random_x(64, HIDDEN)
    saved = {name: _saved_bytes(getattr(mlp, name), x) for name in ("block", "one_by_one")}
    x_and_y, wide = 2 * 64 * HIDDEN * 4, 64 * WIDE * 4
    small = sum(p.numel() for p in mlp.parameters) * 4
    assert saved["block"] <= x_and_y + 2 * wide + small  # e and g
    assert saved["one_by_one"] >= saved["block"] + 2 * wide  # act(e) and h beside them


def _saved_bytes(run: Any, x: Tensor) -> int:
    """Bytes that autograd keeps, each storage once."""
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = run(x)
    assert y.requires_grad
    return sum(found.values())


def test_a_second_derivative_is_refused_clearly() -> None:
    mlp, x = Mlp(), random_x(3, HIDDEN, dtype=F64)
    with pytest.raises(RuntimeError, match=r"no second derivative.*engine.impl: reference"):
        torch.autograd.grad(mlp.block(x).sum(), x, create_graph=True)
