"""Tiny PEFT layers and models in memory for the engine's tests: real PEFT, real NF4, random weights.

An adapter is moved away from its start (B random, magnitudes off by 10 %), so that every gradient is non-zero and a
forgotten term is seen. `bound` is the rule by which results are judged: no further from fp64 than PEFT is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qdora_fast.engine import reference
from qdora_fast.engine.cache import Slot

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "mistral": "Mistral",
    "gemma": "Gemma",
    "gemma2": "Gemma2",
    "phi3": "Phi3",
    "granite": "Granite",
}
EPS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
"""What a type may differ by where PEFT happens to be exact: a few of its steps."""


def nf4_linear(
    linear: nn.Linear, *, quant_type: str = "nf4", compute_dtype: torch.dtype | None = None, repacks: bool = False
) -> Any:
    """The same layer as bitsandbytes' Linear4bit, quantised; its lossy repacking on some CPUs is off by default."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    out, width, bias = linear.out_features, linear.in_features, linear.bias
    layer = Linear4bit(width, out, bias=bias is not None, quant_type=quant_type, compute_dtype=compute_dtype)
    layer.weight = Params4bit(linear.weight.data.clone(), requires_grad=False, quant_type=quant_type)
    layer.bias = None if bias is None else nn.Parameter(bias.data.clone(), requires_grad=False)
    layer.support_avx512bf16_for_cpu = repacks
    return layer.to("cpu")


def quantize(model: nn.Module, **how: Any) -> nn.Module:
    """Every linear layer but the head, in place, as Transformers does it for a 4-bit load."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear and name != "lm_head":
                setattr(module, name, nf4_linear(child, **how))
    model.is_loaded_in_4bit = True
    return model


def move(model: Any, *, moved: float = 0.1, b_std: float = 0.05, seed: int = 1) -> Any:
    """As if training had happened: B random, magnitudes off by `moved`."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        if "lora_B" in name:
            parameter.data = noise * b_std
        elif "lora_magnitude_vector" in name:
            parameter.data = parameter.data * (1 + moved * noise.clamp(-3, 3))
    return model


def adapt(model: nn.Module, *, targets: Any = "all-linear", dtype: torch.dtype | None = None, **lora: Any) -> Any:
    """A PEFT model, not moved; `dtype` casts A, B and m, which PEFT keeps in fp32 otherwise."""
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": targets, **lora}
    adapted = get_peft_model(model, LoraConfig(**settings))
    if dtype is not None:
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
    return adapted


def one_layer(
    out: int = 24,
    width: int = 40,
    *,
    dtype: torch.dtype = torch.float32,
    nf4: bool = False,
    bias: bool = False,
    fresh: bool = False,
    zero_rows: tuple[int, ...] = (),
    adapter_dtype: torch.dtype | None = None,
    **lora: Any,
) -> tuple[Any, Any]:
    """(model, its one adapted layer): PEFT on a single linear layer."""
    torch.manual_seed(out * 1000 + width)
    linear = nn.Linear(width, out, bias=bias)
    linear.weight.data[list(zero_rows)] = 0
    holder = nn.Sequential(linear).to(dtype)
    if nf4:
        quantize(holder, compute_dtype=dtype)
    model = adapt(holder, targets=["0"], dtype=adapter_dtype, **lora)
    if not fresh:
        move(model)
    return model, model.base_model.model[0]


def tiny_lm(
    family: str = "llama",
    *,
    dtype: torch.dtype = torch.float32,
    nf4: bool = True,
    fresh: bool = False,
    seed: int = 0,
    sizes: dict[str, Any] | None = None,
    **lora: Any,
) -> Any:
    """A PEFT causal model of two layers of width 64."""
    import transformers

    torch.manual_seed(seed)
    name = FAMILIES[family]
    given = {**SIZES, "head_dim": 16, **(sizes or {})} if family.startswith("gemma") else {**SIZES, **(sizes or {})}
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**given))
    for parameter in model.parameters():  # norms and biases must not be all ones and zeros
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    model.to(dtype)
    if nf4:
        quantize(model, compute_dtype=dtype)
    torch.manual_seed(seed + 1)
    model = adapt(model, task_type="CAUSAL_LM", **lora)
    return model if fresh else move(model)


def slot_for(weight: Tensor) -> Slot:
    """The place of a layer's W', not allowed to keep it."""
    return Slot(weight.numel(), weight.dtype)


def tokens(batch: int = 2, length: int = 11, seed: int = 3) -> Tensor:
    """Random token ids [batch, length]."""
    return torch.randint(1, SIZES["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))


def twin(model: Any) -> Any:
    """A copy with the same weights."""
    return copy.deepcopy(model)


def random_x(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 5) -> Tensor:
    """A random input that wants a gradient."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype).requires_grad_()


def parameters_of(layer: Any, adapter: str = "default") -> dict[str, Tensor]:
    """A, B and, for DoRA, m of a layer."""
    found = {"A": layer.lora_A[adapter].weight, "B": layer.lora_B[adapter].weight}
    if adapter in layer.lora_magnitude_vector:
        found["m"] = layer.lora_magnitude_vector[adapter].weight
    return found


def run_layer(layer: Any, x: Tensor, *, dy_seed: int = 9, adapter: str = "default") -> dict[str, Tensor]:
    """y and every gradient of one layer for a random upstream gradient, in fp64."""
    leaf = x.detach().clone().requires_grad_(x.requires_grad)
    named = parameters_of(layer, adapter)
    for parameter in named.values():
        parameter.grad = None
    y = layer(leaf)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(dy_seed), dtype=torch.float64)
    y.backward(dy.to(y.dtype))
    gradients = {"x": leaf.grad, **{name: parameter.grad for name, parameter in named.items()}}
    return {"y": y.detach().double(), **{f"d{k}": g.double() for k, g in gradients.items() if g is not None}}


def weight_of(layer: Any) -> Tensor:
    """The base weight as training sees it, in fp64."""
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(layer.get_base_layer()).detach().double()


def exact_layer(
    layer: Any, x: Tensor, *, dropped: Tensor | None = None, adapter: str = "default", **how: Any
) -> dict[str, Tensor]:
    """What `run_layer` should give: the reference in fp64 on this layer's own values."""
    bias = layer.get_base_layer().bias
    named = {name: p.detach().double().requires_grad_() for name, p in parameters_of(layer, adapter).items()}
    leaf = x.detach().double().requires_grad_()
    seen = None if dropped is None else dropped(leaf) if callable(dropped) else dropped.double()
    y = reference.adapted_linear(
        leaf,
        weight_of(layer),
        None if bias is None else bias.detach().double(),
        named["A"],
        named["B"],
        named.get("m"),
        layer.scaling[adapter],
        dropped=seen,
        **how,
    )
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    y.backward(dy)
    return {"y": y.detach(), "dx": leaf.grad, **{f"d{name}": p.grad for name, p in named.items()}}


def bound(ours: dict[str, Tensor], exact: dict[str, Tensor], peft: dict[str, Tensor] | None, tolerance: float) -> None:
    """For every value: ‖ours − exact‖ ≤ ‖PEFT − exact‖ + tolerance · ‖exact‖; also at the worst place."""
    for name, value in ours.items():
        target = exact[name]
        assert value.shape == target.shape and torch.isfinite(value).all(), name
        measures: tuple[Callable[[Tensor], Tensor], ...] = (torch.linalg.vector_norm, lambda t: t.abs().max())
        for measure in measures:
            error = float(measure(value.double() - target))
            allowed = 0.0 if peft is None else float(measure(peft[name].double() - target))
            limit = allowed + tolerance * float(measure(target))
            assert error <= limit, f"{name}: off by {error:.3g}, PEFT by {allowed:.3g}, limit {limit:.3g}"


def loss_and_gradients(model: Any, ids: Tensor | None = None, **inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """One forward and backward of a causal model: the loss and the gradient of everything trained."""
    model.zero_grad(set_to_none=True)
    ids = tokens() if ids is None else ids
    loss = model(input_ids=ids, labels=ids, **inputs).loss
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def close(ours: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]], tolerance: float) -> None:
    """Two results of `loss_and_gradients` agree, each gradient relative to its own length."""
    off, length = abs(float(ours[0]) - float(theirs[0])), abs(float(theirs[0]))
    assert off <= tolerance * length, f"loss: off by {off:.3g} of {length:.3g}"
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        off, length = (float(torch.linalg.vector_norm(t.double())) for t in (ours[1][name] - gradient, gradient))
        assert off <= tolerance * length, f"{name}: off by {off:.3g} of {length:.3g}"
