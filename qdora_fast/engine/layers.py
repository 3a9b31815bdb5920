"""PEFT's LoRA layers with our forward: classes that existing modules are switched to, and back from.

`module.__class__ = FusedLinear4bit` changes one method of one instance. Parameters, names, saving, `disable_adapter`,
generation, deepcopy and isinstance checks stay PEFT's, and PEFT's own forward is `super().forward`: it runs whenever
the state of a layer is not the one the mathematics is written for (see `FusedState.obstacle`). Rewriting PEFT's
source or its classes would touch every model of the process; Unsloth does that, and would undo ours.

Import this file late: it imports peft, and unsloth must be imported before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized

from qdora_fast.engine import reference
from qdora_fast.engine.cache import LayerCache, Slot
from qdora_fast.engine.frozen import Dense, FrozenWeight, Int8, Nf4
from qdora_fast.engine.functions import Projection, adapted_group
from qdora_fast.engine.kernels import Kernels


class Unfusable(Exception):
    """This layer cannot take the fused path; the message says why, in user terms."""


class FusedState:
    """What the engine knows about one layer.

    Args:
        name: the layer's full name.
        form: auto, merged or folded (functions.py).
        reference: run reference.py instead of the hand-written functions.
        peft_dropout: PEFT's form of dropout, by reference.py: one more product with W.
        kernels: triton, torch, or None for what suits the device.
    """

    def __init__(
        self,
        name: str,
        module: Any,
        *,
        form: str = "auto",
        reference: bool = False,
        peft_dropout: bool = False,
        kernels: Kernels | None = None,
    ) -> None:
        self.name, self.form, self.reference, self.peft_dropout = name, form, reference, peft_dropout
        self.kernels = kernels
        self.private_output = False
        """The caller writes into y; see functions.Projection."""
        self.repacks = False
        """bitsandbytes' repacking of the base weight was on before us."""
        self.magnitudes_before: dict[str, tuple[Tensor, Tensor]] = {}
        """By adapter: an untrained magnitude as PEFT made it, and as we set it."""
        self.fallbacks: dict[str, int] = {}
        """Calls that PEFT's own forward took, by reason."""
        self._caches: dict[tuple[str, bool], LayerCache] = {}
        self._frozen: tuple[Any, FrozenWeight] | None = None
        frozen = self.frozen(module)
        self.slot = Slot(frozen.shape[0] * frozen.shape[1], _expected_type(module.base_layer, frozen))

    def __deepcopy__(self, memo: dict[int, Any]) -> FusedState:
        """A copied layer starts with nothing derived: its parameters lie elsewhere."""
        copy = FusedState.__new__(FusedState)
        copy.__dict__ = {**self.__dict__, "_caches": {}, "_frozen": None, "fallbacks": {}}
        copy.slot = Slot(self.slot.elements, self.slot.dtype)
        return copy

    def frozen(self, module: Any) -> FrozenWeight:
        """The base weight; looked at again when the module's weight was replaced or moved."""
        weight = module.base_layer.weight
        mark = (weight.data_ptr(), weight._version, weight.requires_grad)
        if self._frozen is None or self._frozen[0] != mark:
            self._frozen = (mark, frozen_weight(module.base_layer))
            self.forget()
        return self._frozen[1]

    def cache(self, module: Any, adapter: str) -> LayerCache:
        """The cache of an adapter of this layer; they share one place for W'."""
        frozen = self.frozen(module)
        decomposed = adapter in module.lora_magnitude_vector  # under this name there may have been another one
        if (adapter, decomposed) not in self._caches:
            self._caches[adapter, decomposed] = LayerCache(frozen, self.slot, decomposed=decomposed, impl=self.kernels)
        return self._caches[adapter, decomposed]

    def norms(self, module: Any, adapter: str) -> Tensor:
        """‖W‖ of every row, [out], by the routine that computes c."""
        return self.cache(module, adapter).base_norms

    def rows_of_zeros(self, module: Any) -> int:
        """How many rows of W have no direction; 0 for plain LoRA."""
        adapter = module.active_adapters[0] if module.active_adapters else ""
        if adapter not in module.lora_magnitude_vector:
            return 0
        rows = self.cache(module, adapter).unscaled_rows
        return 0 if rows is None else len(rows)

    def forget(self) -> None:
        """Drop everything derived."""
        self._caches = {}

    def obstacle(self, module: Any, extra: bool) -> str | None:
        """Why this call is PEFT's, or None."""
        if extra:
            return "extra arguments"
        if module.disable_adapters:
            return "adapters disabled"
        if module.merged:
            self.forget()  # unmerging gives back a slightly different weight
            return "adapter merged"
        active = module.active_adapters
        if len(active) != 1:
            return f"{len(active)} active adapters"
        if active[0] not in module.lora_A:
            return "adapter not on this layer"
        if why := unsupported(module, active[0]):
            return why
        if has_hooks(module.base_layer):
            return "its base layer has hooks"  # which PEFT's forward calls
        try:
            self.frozen(module)
        except Unfusable as reason:
            return str(reason)
        return None

    def note(self, why: str) -> None:
        """Count a call that PEFT's forward takes."""
        self.fallbacks[why] = self.fallbacks.get(why, 0) + 1

    def parameters(self, module: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """A, B and m of the active adapter."""
        adapter = module.active_adapters[0]
        magnitudes = module.lora_magnitude_vector
        magnitude = magnitudes[adapter].weight if adapter in magnitudes else None
        return module.lora_A[adapter].weight, module.lora_B[adapter].weight, magnitude

    def projection(self, module: Any) -> tuple[Projection, tuple[Tensor, Tensor, Tensor | None]]:
        """The layer as the group functions take it, and its parameters."""
        adapter = module.active_adapters[0]
        a, b, m = self.parameters(module)
        snapshot = self.cache(module, adapter).current(a, b, m, module.scaling[adapter])
        trains = m is not None and m.requires_grad
        projection = Projection(snapshot, module.base_layer.bias, trains, self.private_output, self.form)
        return projection, (a, b, m)

    def dropout(self, module: Any) -> float:
        """Probability of dropping in this call."""
        drop = module.lora_dropout[module.active_adapters[0]]
        return float(drop.p) if isinstance(drop, nn.Dropout) and module.training else 0.0


@torch.compiler.disable
def fused_forward(module: Any, x: Tensor) -> Tensor:
    """y [..., out] of one layer, for an x that its state allows."""
    state: FusedState = module.fused
    dtype, out_dtype = working_types(module.base_layer, x)
    p = state.dropout(module)
    dropped = functional.dropout(x, p) if p else None
    if state.reference or (p and state.peft_dropout):
        return _by_reference(module, x, dropped, dtype, out_dtype)
    projection, parameters = state.projection(module)
    return adapted_group(x, [projection], parameters, dropped=dropped, dtype=dtype, out_dtype=out_dtype)[0]


def working_types(base: Any, x: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """Types of computation and of the result.

    As bitsandbytes and PyTorch do it, except that a DoRA layer gives back x's own type; PEFT's gives fp32 under
    autocast, and with it a residual stream of twice the size.
    """
    quantized = not isinstance(base.weight, nn.Parameter) or base.weight.dtype in (torch.uint8, torch.int8)
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        return dtype, x.dtype if quantized else dtype
    compute = getattr(base, "compute_dtype", None)
    if quantized and x.dtype == torch.float32 and getattr(base, "compute_type_is_set", False) and compute is not None:
        return compute, x.dtype
    return x.dtype, x.dtype


def has_hooks(module: nn.Module) -> bool:
    """Somebody wants to hear of this module's calls, or changes them."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def unsupported(module: Any, adapter: str) -> str | None:
    """Why an adapter of a layer is not one the mathematics is written for, or None."""
    variant = module.lora_variant.get(adapter)
    if variant is not None and type(variant).__name__ != "DoraLinearVariant":
        return f"the LoRA variant {type(variant).__name__} is not supported"
    return "an adapter with a bias of its own is not supported" if module.lora_bias[adapter] else None


def _expected_type(base: Any, frozen: FrozenWeight) -> torch.dtype:
    """The type of computation that this layer will most probably see."""
    compute = getattr(base, "compute_dtype", None)
    return compute if isinstance(compute, torch.dtype) and compute.is_floating_point else frozen.dtype


def frozen_weight(base: Any) -> FrozenWeight:
    """The base layer's weight as the engine reads it.

    Raises:
        Unfusable: its form is not supported.
    """
    kind, weight = type(base).__name__, base.weight
    if is_parametrized(base) or not isinstance(weight, nn.Parameter):
        raise Unfusable("its base weight is made anew in every call (a parametrization)")
    if weight.is_meta:
        raise Unfusable("its base weight is not in memory (offloaded, or not loaded yet)")
    if weight.requires_grad:
        raise Unfusable("its base weight is trained")
    if kind in ("Linear4bit", "LinearNF4"):
        state = getattr(weight, "quant_state", None)
        if state is None:
            raise Unfusable("its 4-bit weight is not quantised yet (move the model to its device first)")
        if state.quant_type != "nf4":
            raise Unfusable(f"its weight is {state.quant_type}, not nf4")
        if getattr(state, "packing_format_for_cpu", False):
            raise Unfusable("bitsandbytes has repacked its weight for inference; fuse before the model first answers")
        return Nf4(weight.data, state)
    if kind == "Linear8bitLt":
        steps = weight.SCB if weight.SCB is not None else base.state.SCB  # bitsandbytes moves it when first used
        if weight.dtype != torch.int8 or steps is None:
            raise Unfusable("its 8-bit weight is not quantised yet (move the model to its device first)")
        return Int8(weight.data, steps, torch.float16)
    plain = type(weight) is nn.Parameter and weight.ndim == 2  # no other form of tensor, no shard
    if isinstance(base, nn.Linear) and plain and weight.dtype.is_floating_point and weight.element_size() >= 2:
        return Dense(weight)
    raise Unfusable(f"a base layer of type {kind} is not supported")


def _by_reference(module: Any, x: Tensor, dropped: Tensor | None, dtype: torch.dtype, out_dtype: torch.dtype) -> Tensor:
    state: FusedState = module.fused
    a, b, m = state.parameters(module)
    adapter = module.active_adapters[0]
    frozen = state.frozen(module)
    exact = torch.promote_types(dtype, torch.float32)
    bias = module.base_layer.bias
    with torch.autocast(x.device.type, enabled=False):
        y = reference.adapted_linear(
            x.to(exact),
            frozen.matrix(exact),
            None if bias is None else bias.to(exact),
            a.to(exact),
            b.to(exact),
            None if m is None else m.to(exact),
            module.scaling[adapter],
            dropped=None if dropped is None else dropped.to(exact),
            peft_dropout=state.peft_dropout,
            unscaled_rows=state.cache(module, adapter).unscaled_rows,
        )
    return y.to(out_dtype)


class _Fused:
    """The one method that differs from PEFT's class, and the name that goes with the rest."""

    fused: FusedState

    def _get_name(self) -> str:
        """PEFT's name, for `print(model)`."""
        return type(self).__name__.removeprefix("Fused")

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """PEFT's forward pass, by the fused path where it applies."""
        why = self.fused.obstacle(self, bool(args or kwargs))
        if why is None:
            return fused_forward(self, x)
        self.fused.note(why)
        theirs: Callable[..., Tensor] = super().forward  # type: ignore[misc]
        return theirs(x, *args, **kwargs)


class FusedLinear(_Fused, lora.Linear):
    """lora.Linear on a dense base."""


FUSED: dict[type, type] = {lora.Linear: FusedLinear}
"""PEFT's class to ours."""

if hasattr(lora, "Linear4bit"):

    class FusedLinear4bit(_Fused, lora.Linear4bit):
        """lora.bnb.Linear4bit on an NF4 base."""

    FUSED[lora.Linear4bit] = FusedLinear4bit

if hasattr(lora, "Linear8bitLt"):

    class FusedLinear8bitLt(_Fused, lora.Linear8bitLt):
        """lora.bnb.Linear8bitLt on an int8 base."""

    FUSED[lora.Linear8bitLt] = FusedLinear8bitLt
