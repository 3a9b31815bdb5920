"""Whole blocks of a model on the fused path: the gated MLP everywhere, Q, K, V and O where Unsloth calls a hook.

Each hook is an attribute of one instance, set beside what was there and taken off again by `unhook`. A call for which
a block's mathematics is not written goes to the block's own forward, whose layers are fused one by one.

- MLP: any module with gate_proj, up_proj, down_proj and act_fn. Its class is not looked up in a list; it is tried, and
  keeps its own forward if that computes something else.
- Attention: Unsloth's families call `self_attn.apply_qkv(self_attn, x)` and `apply_o`; others are left alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from qdora_fast.engine.blocks import gated_mlp
from qdora_fast.engine.functions import adapted_group
from qdora_fast.engine.layers import FusedState, has_hooks, working_types

_MLP = ("gate_proj", "up_proj", "down_proj")
_QKV = ("q_proj", "k_proj", "v_proj")
_BEFORE = "_before_fusing"
_ACTIVATION = "_fused_activation"
_CANDIDATES: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


def hook_mlp(module: Any) -> str | None:
    """Set our forward on a gated MLP whose three layers are fused. Returns why not, or None."""
    activation = activation_of(module.act_fn)
    if activation is None:
        return f"activation {type(module.act_fn).__name__} is not SiLU or GELU"
    if not _agrees(module, activation):
        return f"a {type(module).__name__} computes something else than down(act(gate(x)) * up(x))"
    _set(module, "forward", MethodType(_mlp_forward, module))
    module.__dict__[_ACTIVATION] = activation
    return None


def hook_attention(module: Any) -> tuple[bool, bool]:
    """Replace Unsloth's apply_qkv and apply_o of an attention whose layers are fused; says which were."""
    qkv = all(_is_fused(getattr(module, name, None)) for name in _QKV)
    o = _is_fused(getattr(module, "o_proj", None))
    if qkv:
        for name in _QKV:  # Unsloth's RoPE writes into Q and K
            getattr(module, name).fused.private_output = name != "v_proj"
        _set(module, "apply_qkv", _apply_qkv)
    if o:
        _set(module, "apply_o", _apply_o)
    return qkv, o


def unhook(module: Any) -> None:
    """Give a module back what it had before."""
    for name, before in module.__dict__.pop(_BEFORE, {}).items():
        module.__dict__.pop(name, None)
        if before is not None:
            module.__dict__[name] = before
    module.__dict__.pop(_ACTIVATION, None)


def mlp_layers(module: Any) -> list[Any] | None:
    """The three layers of a gated MLP, if it is one and all are fused."""
    layers = [getattr(module, name, None) for name in _MLP]
    return layers if all(map(_is_fused, layers)) and hasattr(module, "act_fn") else None


def activation_of(act: Any) -> str | None:
    """silu, gelu or gelu_tanh: which one a module's activation is, by its values."""
    probe = torch.linspace(-6, 6, 97)
    try:
        with torch.no_grad():
            values = act(probe)
    except (RuntimeError, TypeError, ValueError):
        return None
    for name, candidate in _CANDIDATES.items():
        if torch.allclose(values, candidate(probe), rtol=1e-5, atol=1e-6):
            return name
    return None


def _mlp_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layers = mlp_layers(self)  # None once PEFT has merged its layers away
    biased = layers is not None and any(layer.base_layer.bias is not None for layer in layers[:2])
    if layers is None or biased or args or kwargs or not _same_path(layers, x):
        before = self.__dict__[_BEFORE]["forward"]
        own: Tensor = type(self).forward(self, x, *args, **kwargs) if before is None else before(x, *args, **kwargs)
        return own
    return _fused_mlp(self, layers, x)


@torch.compiler.disable
def _fused_mlp(self: Any, layers: Sequence[Any], x: Tensor) -> Tensor:
    dtype, _ = working_types(layers[0].base_layer, x)
    projections, parameters = zip(*(layer.fused.projection(layer) for layer in layers), strict=True)
    return gated_mlp(x, projections, [p for three in parameters for p in three], self.__dict__[_ACTIVATION], dtype)


def _apply_qkv(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    layers = [self.q_proj, self.k_proj, self.v_proj]
    if not all(map(_is_fused, layers)) or not _same_path(layers, x):
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)
    q, k, v = _fused_group(layers, x)
    return q, k, v


def _apply_o(self: Any, x: Tensor) -> Tensor:
    result: Tensor = self.o_proj(x)
    return result


@torch.compiler.disable
def _fused_group(layers: Sequence[Any], x: Tensor) -> tuple[Tensor, ...]:
    dtype, out_dtype = working_types(layers[0].base_layer, x)
    projections, parameters = zip(*(layer.fused.projection(layer) for layer in layers), strict=True)
    flat = [p for three in parameters for p in three]
    return adapted_group(x, projections, flat, dtype=dtype, out_dtype=out_dtype)


def _same_path(layers: Sequence[Any], x: Tensor) -> bool:
    """All layers take the fused path for this call, with one type, without dropout and with nobody listening: PEFT
    says by a hook on each layer which adapter is whose row."""
    states: Iterator[FusedState] = (layer.fused for layer in layers)
    for layer, state in zip(layers, states, strict=True):
        if has_hooks(layer):
            return False
        if state.reference or state.obstacle(layer, False) or state.dropout(layer):
            return False
    kinds = {working_types(layer.base_layer, x) for layer in layers}
    return len(kinds) == 1 and next(iter(kinds))[1] == x.dtype


def _agrees(module: Any, activation: str) -> bool:
    """Is the module's forward down(act(gate(x)) * up(x))? Tried with three small layers of ours in place of its own.

    So neither the adapters' state, dropout, nor random numbers have a part in it; values of all sizes do, for some
    blocks clamp large ones.
    """
    probe = copy.copy(module)
    layers = {name: _small_layer(*size) for name, size in zip(_MLP, ((12, 8), (12, 8), (8, 12)), strict=True)}
    probe.__dict__["_modules"] = {**module._modules, **layers}
    x = torch.cat([size * torch.sin(torch.arange(16.0)).view(2, 8) for size in (0.1, 1.0, 30.0, 1000.0)])[None]
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        try:
            own = _own_function(module)(probe, x)
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError):
            return False
        act = _CANDIDATES[activation]
        expected = layers["down_proj"](act(layers["gate_proj"](x)) * layers["up_proj"](x))
    return isinstance(own, Tensor) and own.shape == expected.shape and torch.allclose(own, expected, rtol=1e-4)


def _own_function(module: Any) -> Callable[..., Any]:
    """The forward that a module runs, as a function of itself; for Unsloth's LoRA kernels the class's, which they
    stand for and which runs anywhere."""
    function = getattr(module.__dict__.get("forward"), "__func__", None)
    if function is None or function.__module__.startswith("unsloth"):
        own: Callable[..., Any] = type(module).forward
        return own
    return cast(Callable[..., Any], function)


def _small_layer(out_features: int, in_features: int) -> nn.Linear:
    layer = nn.Linear(in_features, out_features, bias=False, device="meta").to_empty(device="cpu")
    layer.weight.data = torch.cos(torch.arange(out_features * in_features) * 1.7).view(out_features, in_features)
    return layer


def _is_fused(layer: Any) -> bool:
    return isinstance(getattr(layer, "fused", None), FusedState)


def _set(module: Any, name: str, value: Any) -> None:
    before = module.__dict__.setdefault(_BEFORE, {})
    before.setdefault(name, module.__dict__.get(name))
    module.__dict__[name] = value
