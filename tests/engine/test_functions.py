"""The hand-written backward against the specification: tight in fp64, no worse than PEFT in every other type."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_models import EPS, bound, exact_layer, one_layer, random_x, run_layer, slot_for, tiny_lm
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from qdora_fast.engine import install, reference
from qdora_fast.engine.cache import CLOCK, LayerCache
from qdora_fast.engine.frozen import Dense
from qdora_fast.engine.functions import Projection, adapted_group, prefers_merged

F64 = torch.float64
FORMS = ["merged", "folded"]
GROUPS = {"one": [24], "gate-up": [33, 33], "qkv": [24, 8, 8]}


class FixedNorms(Dense):
    """A weight whose c does not follow A and B: what a finite difference must see, for c is detached."""

    def __init__(self, weight: Tensor, norms: Tensor) -> None:
        super().__init__(weight)
        self.fixed = norms

    def norms(self, lora_a: Tensor | None = None, lora_b: Tensor | None = None, scaling: float = 1.0) -> Tensor:
        """c as given."""
        return super().norms() if lora_a is None else self.fixed


class Layer:
    """The tensors of one layer in fp64."""

    def __init__(self, out: int, width: int, *, seed: int, dora: bool = True, bias: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        w, a, b, c = (torch.randn(s, generator=generator, dtype=F64) for s in ((out, width), (3, width), (out, 3), out))
        self.w, self.a, self.b, self.s = w, a.requires_grad_(), b.requires_grad_(), 0.7
        self.bias = torch.randn(out, generator=generator, dtype=F64) if bias else None
        norms = reference.row_norms(w, a, b, self.s)
        self.m = (norms * (1 + 0.1 * c)).requires_grad_() if dora else None

    @property
    def parameters(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """A, B, m."""
        return self.a, self.b, self.m

    def projection(self, form: str, frozen: Dense | None = None, **flags: Any) -> Projection:
        """As layers.py makes it."""
        cache = LayerCache(frozen or Dense(self.w), slot_for(self.w), decomposed=self.m is not None)
        trains = self.m is not None and self.m.requires_grad
        return Projection(cache.current(*self.parameters, self.s), self.bias, trains, form=form, **flags)

    def exact(self, x: Tensor, dropped: Tensor | None = None) -> Tensor:
        """y by the specification."""
        return reference.adapted_linear(x, self.w, self.bias, *self.parameters, self.s, dropped=dropped)


def _group(layers: list[Layer], x: Tensor, form: str, dropped: Tensor | None = None, **flags: Any) -> list[Tensor]:
    projections = [layer.projection(form, **flags) for layer in layers]
    parameters = [p for layer in layers for p in layer.parameters]
    return list(adapted_group(x, projections, parameters, dropped=dropped, dtype=x.dtype, out_dtype=x.dtype))


def _gradients(outputs: list[Tensor], inputs: list[Tensor], used: slice = slice(None)) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(3)
    upstream = [torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in outputs]
    return list(torch.autograd.grad(outputs[used], inputs, upstream[used], allow_unused=True))


def _compare(layers: list[Layer], x: Tensor, form: str, used: slice = slice(None)) -> None:
    inputs = [t for t in (x, *(p for layer in layers for p in layer.parameters)) if t is not None and t.requires_grad]
    ours, exact = _group(layers, x, form), [layer.exact(x) for layer in layers]
    torch.testing.assert_close(ours, exact, rtol=1e-11, atol=1e-11)
    for got, wanted in zip(_gradients(ours, inputs, used), _gradients(exact, inputs, used), strict=True):
        if wanted is None or got is None:
            assert wanted is None and (got is None or not got.any())
        else:
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Memory that PyTorch does not initialise is NaN: a value nobody wrote is seen."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("kind", ["dora", "dora-bias", "lora", "lora-bias"])
def test_output_and_gradients_are_the_specifications(form: str, group: str, kind: str) -> None:
    layers = [Layer(out, 40, seed=i, dora="dora" in kind, bias="bias" in kind) for i, out in enumerate(GROUPS[group])]
    _compare(layers, random_x(2, 5, 40, dtype=F64), form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", ["one token", "matrix", "one row of a batch", "not contiguous", "expanded"])
def test_inputs_of_every_shape(form: str, shape: str) -> None:
    x = {
        "one token": random_x(1, 1, 40, dtype=F64),
        "matrix": random_x(9, 40, dtype=F64),
        "one row of a batch": random_x(1, 13, 40, dtype=F64),
        "not contiguous": random_x(40, 6, 3, dtype=F64).permute(2, 1, 0),
        "expanded": random_x(1, 1, 40, dtype=F64).expand(2, 3, 40),
    }[shape]
    _compare([Layer(24, 40, seed=0, bias=True), Layer(7, 40, seed=1)], x, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("frozen", ["m", "a", "b", "x", "a b", "m a", "x a b"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(form: str, frozen: str) -> None:
    layers, x = [Layer(24, 40, seed=0, bias=True), Layer(9, 40, seed=1)], random_x(6, 40, dtype=F64)
    for name in frozen.split():
        (x if name == "x" else getattr(layers[0], name)).requires_grad_(False)
    _compare(layers, x, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("used", [slice(0, 2), slice(1, 3), slice(1, 2)], ids=str)
def test_an_output_that_nobody_uses(form: str, used: slice) -> None:
    _compare([Layer(out, 40, seed=out) for out in (24, 8, 9)], random_x(6, 40, dtype=F64), form, used)


@pytest.mark.parametrize("dora", [True, False])
def test_dropout_reaches_the_update_alone(dora: bool) -> None:
    layer = Layer(24, 40, seed=0, dora=dora, bias=True)
    inputs = [random_x(2, 6, 40, dtype=F64), *(p for p in layer.parameters if p is not None)]
    results = []
    for run in (lambda x, d: _group([layer], x, "auto", d), lambda x, d: [layer.exact(x, d)]):
        torch.manual_seed(4)
        outputs = run(inputs[0], functional.dropout(inputs[0], 0.4))
        results.append([*outputs, *_gradients(outputs, inputs)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("outs", [[5], [4, 3], [5, 2, 2]], ids=str)
def test_gradcheck(form: str, outs: list[int]) -> None:
    layers = [Layer(out, 6, seed=i, bias=i == 0) for i, out in enumerate(outs)]
    frozen = [FixedNorms(layer.w, reference.row_norms(layer.w, layer.a, layer.b, layer.s)) for layer in layers]

    def run(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        CLOCK.advance()  # gradcheck moves values in place, unseen
        projections = [layer.projection(form, weight) for layer, weight in zip(layers, frozen, strict=True)]
        return adapted_group(x, projections, parameters, dtype=F64, out_dtype=F64)

    parameters = [p for layer in layers for p in layer.parameters if p is not None]
    assert torch.autograd.gradcheck(run, (random_x(2, 3, 6, dtype=F64), *parameters))


CASES = {
    "fp32": (torch.float32, {}),
    "bf16": (torch.bfloat16, {}),
    "fp16": (torch.float16, {}),
    "bf16 throughout": (torch.bfloat16, {"adapter_dtype": torch.bfloat16}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("base", ["dense", "nf4", "lora nf4"])
def test_no_further_from_exact_than_peft(form: str, case: str, base: str) -> None:
    dtype, options = CASES[case]
    nf4, dora = "nf4" in base, "lora" not in base
    width = 192 if nf4 else 130
    model, layer = one_layer(72, width, dtype=dtype, nf4=nf4, use_dora=dora, bias=True, **options)
    x = random_x(3, 37, width, dtype=dtype)
    theirs, exact = run_layer(layer, x), exact_layer(layer, x)
    assert install(model, impl="torch", form=form, resident="off").layers == 1
    bound(run_layer(layer, x), exact, theirs, EPS[dtype])


@pytest.mark.parametrize("form", FORMS)
def test_autocast_gives_back_the_type_of_x(form: str) -> None:
    """PEFT's DoRA makes it fp32, and with it the whole residual stream."""
    model, layer = one_layer(64, 128, nf4=True)
    x = random_x(2, 9, 128)
    exact, x16 = exact_layer(layer, x), x.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs = run_layer(layer, x)
        install(model, impl="torch", form=form, resident="off")
        ours = run_layer(layer, x)
        assert layer(x).dtype == torch.float32 and layer(x16).dtype == torch.bfloat16
        y = layer(x16)
    bound(ours, exact, theirs, EPS[torch.bfloat16])
    y.sum().backward()  # outside autocast, as training loops do it
    assert x16.grad is not None and x16.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("form", [*FORMS, "auto"])
@pytest.mark.parametrize("part", ["a layer", "an mlp"])
def test_a_backward_within_the_callers_autocast_is_the_same(part: str, form: str) -> None:
    """Forward without autocast, in fp32; the products of the backward are fp32's as well, bit for bit."""
    model: Any
    if part == "a layer":
        model, module = one_layer(64, 128, nf4=True)
    else:
        model = tiny_lm()
        module = model.base_model.model.model.layers[0].mlp
    install(model, form=form)
    results = []
    for autocast in (False, True):
        x = random_x(7, 128 if part == "a layer" else 64)
        model.zero_grad()
        y = module(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            torch.autograd.backward(y, torch.ones_like(y))
        results.append([x.grad, *(p.grad for p in module.parameters() if p.grad is not None)])
    assert len(results[0]) == (4 if part == "a layer" else 10)
    assert all(torch.equal(plain, within) for plain, within in zip(*results, strict=True))


class Multiplications(TorchDispatchMode):
    """Counts those of matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and do it."""
        result = func(*args, **(kwargs or {}))
        matrices = [each for each in args if isinstance(each, Tensor) and each.dim() == 2]
        if "mm" in func._schema.name:
            left, right = matrices[-2:]
            self.count += left.shape[0] * left.shape[1] * right.shape[1]
        return result


def _multiplications(tokens: int, form: str) -> int:
    model, layer = one_layer(48, 64, nf4=True, r=16)
    install(model, form=form, resident="off")
    layer(random_x(1, 64))  # the norm is taken
    with Multiplications() as counted:
        layer(random_x(tokens, 64)).sum().backward()
    return counted.count


def test_auto_takes_the_form_that_needs_fewer_multiplications_where_they_differ_much() -> None:
    for tokens, better, worse in ((2, "folded", "merged"), (4000, "merged", "folded")):
        auto, best, other = (_multiplications(tokens, form) for form in ("auto", better, worse))
        assert auto == best < other


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (8, 1000)])
def test_without_a_measured_ratio_the_form_changes_where_the_operations_break_even(shape: tuple[int, int]) -> None:
    out, width = shape
    even = out * width / (out + width)
    chosen = [prefers_merged(tokens, shape, "another device") for tokens in range(1, int(3 * even))]
    assert chosen == [tokens >= even for tokens in range(1, int(3 * even))]


def test_fp16_with_a_gradient_scaler() -> None:
    model, layer = one_layer(64, 128, nf4=True)
    x, scaler = random_x(8, 128), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    install(model, impl="torch", resident="off")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    exact = exact_layer(layer, x)
    dy = torch.randn(8, 64, generator=torch.Generator().manual_seed(9), dtype=F64)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = (layer(x).float() * dy.float()).sum()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    ours = {f"d{n}": p.grad for n, p in zip("ABm", (p for p in layer.parameters() if p.requires_grad), strict=True)}
    bound(ours, exact, None, 3e-3)
    before = layer.lora_B["default"].weight.detach().clone()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**10 and not torch.equal(layer.lora_B["default"].weight, before)


def test_a_second_derivative_is_refused_clearly() -> None:
    layer, x = Layer(24, 40, seed=0), random_x(3, 40, dtype=F64)
    (y,) = _group([layer], x, "merged")
    with pytest.raises(RuntimeError, match=r"no second derivative.*engine.impl: reference"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize("form", FORMS)
def test_outputs_overwritten_behind_autograds_back(form: str) -> None:
    """Unsloth's RoPE writes into Q and K untracked; the gradient that reaches us is the one before the rotation."""
    layer, x = Layer(24, 40, seed=0, bias=True), random_x(6, 40, dtype=F64)
    inputs = [x, *layer.parameters]
    wanted = _gradients([layer.exact(x)], inputs)
    (y,) = _group([layer], x, form, private_output=True)
    y.data.mul_(3).add_(1)
    torch.testing.assert_close(_gradients([y], inputs), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_outputs_overwritten_where_nobody_said_so_are_an_error(form: str) -> None:
    layer, x = Layer(24, 40, seed=0), random_x(6, 40, dtype=F64)
    (y,) = _group([layer], x, form)
    with torch.no_grad():
        y.mul_(3)
    with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):
        y.sum().backward()


def test_a_tracked_change_between_forward_and_backward_is_autograds_error() -> None:
    layer, x = Layer(24, 40, seed=0), random_x(6, 40, dtype=F64)
    (y,) = _group([layer], x, "auto")
    with torch.no_grad():
        layer.b.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
