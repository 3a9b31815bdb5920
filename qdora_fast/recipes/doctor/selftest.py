"""The engine's self-test: one fused DoRA layer on NF4, forward and backward, against the reference in plain PyTorch.

A library can import and still compute something else on this card or in this version. So a tiny layer is built as a
run builds it (bitsandbytes' NF4, PEFT's DoRA, our forward), moved away from its start so that no gradient is zero,
and compared with engine/reference.py in fp64. It takes milliseconds, and says nothing about speed: that is `bench`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qdora_fast.models.backend import open_backend
from qdora_fast.recipes.doctor.finding import Finding
from qdora_fast.system.install import how_to_set_up

IN, OUT, RANK, TOKENS = 128, 64, 4, 24
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 1e-2}
"""How far a result may be from fp64, as a share of its length: a few roundings of the type."""


def engine(where: str, *, precision: str | None = None) -> Iterator[Finding]:
    """Output and every gradient, each within TOLERANCE.

    Args:
        where: cuda or cpu.
        precision: fp32, bf16 or fp16; what a run would compute in unless given.
    """
    open_backend()
    import torch

    if precision is None:
        bf16 = where == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "fp32" if where == "cpu" else "bf16" if bf16 else "fp16"
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, layer = _layer(where, dtype)
        x = torch.randn(TOKENS, IN, device=where, dtype=dtype).requires_grad_()
        dy = torch.randn(TOKENS, OUT, device=where, dtype=dtype)

    from qdora_fast.engine import fallbacks, install, uninstall

    report = install(model, require=True, resident="off")
    y = layer(x)
    y.backward(dy)
    ours = {"y": y.detach(), "x": x.grad, **{name: part.grad for name, part in _trained(layer).items()}}
    errors = {name: _distance(ours[name], exact) for name, exact in _exact(layer, x.detach(), dy).items()}
    worst = max(errors, key=lambda name: errors[name])
    text = f"{report.impl} in {precision} on the {where}, worst error {errors[worst]:.1e}"
    left = fallbacks(model)
    uninstall(model)
    if left:
        yield Finding("engine", "wrong", f"the fused path was not taken: {next(iter(left))}", _fix())
    elif errors[worst] <= TOLERANCE[precision]:
        yield Finding("engine", "ok", f"a fused DoRA layer computes as the reference does ({text})")
    else:
        what = "output" if worst == "y" else f"gradient of {worst}"
        yield Finding("engine", "wrong", f"a fused DoRA layer is not the reference: {what} ({text})", _fix())


def _fix() -> str:
    return f"{how_to_set_up()}; until then train with --set engine.impl=reference, and tell us"


def _layer(where: str, dtype: Any) -> tuple[Any, Any]:
    """A model of one NF4 layer with DoRA, as if trained for a while; and that layer."""
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit
    from peft import LoraConfig, get_peft_model

    from qdora_fast.engine.frozen import set_repacking

    base = Linear4bit(IN, OUT, bias=False, quant_type="nf4", compress_statistics=True, compute_dtype=dtype)
    weight = torch.randn(OUT, IN).to(dtype) * 0.1
    base.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
    set_repacking(base, False)
    model = torch.nn.Sequential(base).to(where)
    adapted = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["0"], use_dora=True))
    layer = adapted.base_model.model[0]
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(std=0.05)
        magnitude = layer.lora_magnitude_vector["default"].weight
        magnitude.mul_(1 + 0.1 * torch.rand_like(magnitude))
    return adapted, layer


def _trained(layer: Any) -> dict[str, Any]:
    return {
        "A": layer.lora_A["default"].weight,
        "B": layer.lora_B["default"].weight,
        "magnitude": layer.lora_magnitude_vector["default"].weight,
    }


def _exact(layer: Any, x: Any, dy: Any) -> dict[str, Any]:
    """The reference's output and gradients in fp64, from the values that the layer holds."""
    import torch
    from bitsandbytes.functional import dequantize_4bit

    from qdora_fast.engine.reference import adapted_linear

    packed = layer.base_layer.weight
    weight = dequantize_4bit(packed.data, packed.quant_state).double()
    parts = {name: part.detach().double().requires_grad_() for name, part in _trained(layer).items()}
    x = x.double().requires_grad_()
    scaling = layer.scaling["default"]
    y = adapted_linear(x, weight, None, parts["A"], parts["B"], parts["magnitude"], scaling)
    gradients = torch.autograd.grad(y, [x, *parts.values()], dy.double())
    return {"y": y.detach(), **dict(zip(["x", *parts], gradients, strict=True))}


def _distance(ours: Any, exact: Any) -> float:
    """‖ours − exact‖ / ‖exact‖; infinite for what is missing or not a number."""
    if ours is None or not bool(ours.isfinite().all()):
        return float("inf")
    return float((ours.double() - exact).norm() / exact.norm())
