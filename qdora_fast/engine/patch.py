"""Put the engine into a PEFT model, and take it out again.

`install` switches the class of each LoRA layer and hooks the blocks above them, instance by instance; `uninstall`
undoes it bit for bit. Nobody else's model, and no class of any library, is changed. What was fused and what was
left to PEFT, and why, is in the report.

DoRA's magnitudes of a fresh adapter are set by the routine that computes c, so that g = m / c is 1 exactly at step 0
and every layer is its base layer, bit for bit (in 16 bits a whole model still differs from PEFT's, by the gated MLP
that rounds once). PEFT computes both in the weight's own type, off by up to 0.3 % in bf16.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer

from qdora_fast.engine import hooks, kernels
from qdora_fast.engine.cache import CLOCK, SCRATCH, follow
from qdora_fast.engine.frozen import set_repacking
from qdora_fast.engine.layers import FUSED, FusedState, Unfusable, unsupported
from qdora_fast.engine.residency import Residency, Resident

Impl = Literal["auto", "triton", "torch", "reference", "peft", "off"]
Form = Literal["auto", "merged", "folded"]

_HANDLE = "_qdora_engine"
_MAGNITUDES = "_magnitudes_before_fusing"
_FRESH = 0.01
"""A magnitude within this share of c, with B = 0, has not been trained."""


@dataclass
class EngineReport:
    """What `install` did."""

    impl: str
    """triton, torch, reference, peft or off: what `auto` became."""
    layers: int = 0
    """Layers on the fused path."""
    adapted: int = 0
    """Layers that carry an adapter."""
    blocks: dict[str, int] = field(default_factory=dict)
    """Whole blocks on the fused path: mlp, qkv, o."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Layers and blocks left to PEFT, with the reason."""
    magnitudes_set: int = 0
    """Layers whose untrained magnitudes were set to the exact row norms."""
    rows_of_zeros: int = 0
    """Rows of W without a direction: their scale stays 1."""
    resident_layers: int = 0
    """Layers that may keep W' between products, as far as known at install time."""
    resident_bytes: int = 0
    """Memory they take when in use."""
    resident_later: bool = False
    """Which layers keep W' is decided after the first step, when its peak is known (on a GPU)."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people: a line a fact; each reason once, with its count."""
        if self.impl == "off":
            return ["off: the model runs PEFT's own forward"]
        if self.impl == "peft":
            return [f"peft: PEFT's own forward on {self.adapted} layers"]
        blocks = "".join(f", {count} {kind} blocks" for kind, count in self.blocks.items() if count)
        lines = [f"{self.impl}: {self.layers} of {self.adapted} layers fused{blocks}"]
        if self.resident_layers:
            size = f"{self.resident_bytes / 2**20:,.0f} MiB"
            lines.append(f"keeps the merged weights of {self.resident_layers} layers between products ({size})")
        if self.resident_later:
            lines.append("keeps merged weights between products where the first step leaves memory for it")
        if self.rows_of_zeros:
            lines.append(f"{self.rows_of_zeros} rows of the base are all zeros: their scale stays 1")
        for why, count in Counter(self.skipped.values()).items():
            first = next(name for name, reason in self.skipped.items() if reason == why)
            lines.append(f"left to PEFT: {count} × {why} (first: {first})")
        return lines


class EngineError(RuntimeError):
    """`require` was set and something stayed on PEFT's path; or the model has nothing to fuse."""


def install(
    model: Any,
    *,
    impl: Impl = "auto",
    resident: Resident = "auto",
    form: Form = "auto",
    peft_dropout: bool = False,
    require: bool = False,
    saved: bool = False,
) -> EngineReport:
    """Put the fused path into a PEFT LoRA or DoRA model.

    Args:
        model: a PeftModel, or any module that holds PEFT's LoRA layers. Changed in place; parameters keep their names.
        impl: triton (GPU kernels), torch (their PyTorch twins), auto (triton on CUDA, else torch), reference (plain
            autograd), peft (PEFT's forward, with exact initial magnitudes), off (nothing).
        resident: auto, off or GiB for W' kept between products; see residency.py.
        form: merged, folded or auto; see functions.py.
        peft_dropout: PEFT's form of dropout on DoRA layers; see reference.py.
        require: fail when any adapted layer was left to PEFT.
        saved: the adapter was read from a file; its magnitudes stay as they are, also where training has not begun.

    Raises:
        EngineError: no adapted layers, or `require` and a layer was skipped. The model is then as it was.
    """
    uninstall(model)
    adapted = list(_adapted_layers(model))
    if not adapted:
        raise EngineError("this model has no LoRA layers; attach an adapter with PEFT first")
    if impl == "off":
        return EngineReport("off", adapted=len(adapted))
    weight = next(parameter for _, module in adapted for parameter in module.parameters())
    chosen = _kernels(impl, weight)
    report = EngineReport(chosen if impl in ("auto", "triton", "torch") else impl, adapted=len(adapted))
    fused = []
    for name, module in adapted:
        options = {"form": form, "reference": impl == "reference", "peft_dropout": peft_dropout, "kernels": chosen}
        why = _fuse(name, module, options)
        if why:
            report.skipped[name] = why
        else:
            fused.append(module)
    report.layers = len(fused)
    for module in fused:
        report.magnitudes_set += 0 if saved else _set_fresh_magnitudes(module)
        report.rows_of_zeros += module.fused.rows_of_zeros(module)
    if require and report.skipped:
        uninstall(model)
        raise EngineError("engine.require: " + "; ".join(report.lines()[1:]))
    if impl == "peft":
        for module in fused:
            _restore_class(module)
        return report
    if impl != "reference":
        _hook_blocks(model, report)
    model.__dict__[_HANDLE] = handle = _Handle(fused, "off" if impl == "reference" else resident, weight.device, form)
    report.resident_layers = handle.residency.layers
    report.resident_bytes = handle.residency.bytes
    report.resident_later = handle.residency.later
    return report


def uninstall(model: Any) -> None:
    """Give a model back PEFT's classes, its blocks' own forwards, and untrained magnitudes as PEFT made them."""
    for module in model.modules():
        handle = module.__dict__.pop(_HANDLE, None)  # of the whole model, or of a part that was fused on its own
        if handle is not None:
            handle.close()
        hooks.unhook(module)
        if isinstance(module.__dict__.get("fused"), FusedState):
            _restore_class(module)
        _restore_magnitudes(module)


def residency(model: Any) -> Residency | None:
    """The model's resident weights: how many layers, how many bytes, and `release()`; None without the engine."""
    handle = model.__dict__.get(_HANDLE)
    return None if handle is None else handle.residency


def fallbacks(model: Any) -> dict[str, int]:
    """Calls of fused layers that PEFT's own forward took since `install`, or since they were forgotten, by reason."""
    total: Counter[str] = Counter()
    for module in model.modules():
        state = module.__dict__.get("fused")
        if isinstance(state, FusedState):
            total.update(state.fallbacks)
    return dict(total)


def forget_fallbacks(model: Any) -> None:
    """Count them from zero again."""
    for module in model.modules():
        if isinstance(state := module.__dict__.get("fused"), FusedState):
            state.fallbacks.clear()


class _Handle:
    """What belongs to the whole model: resident weights, and magnitudes that must follow c after the last step too."""

    def __init__(self, fused: list[Any], resident: Resident, device: torch.device, form: Form) -> None:
        CLOCK.start()
        slots = [] if form == "folded" else [module.fused.slot for module in fused]
        self.residency = Residency(slots, resident, on_gpu=device.type == "cuda")
        self._following = [module for module in fused if module.fused.rows_of_zeros(module)]
        if self._following:
            CLOCK.tell(self, self._follow)

    def close(self) -> None:
        """Give memory back and stop listening."""
        self.residency.close()
        SCRATCH.clear()
        CLOCK.forget(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copied model keeps nothing resident."""
        return None

    def _follow(self) -> None:
        for module in self._following:
            if module.fused.obstacle(module, False) is None:
                module.fused.projection(module)


def _adapted_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Layers that carry an adapter of any of PEFT's methods. Tokens trained beside it are no layer of their own."""
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and not isinstance(module, TrainableTokensLayer):
            yield name, module


def _kernels(impl: Impl, weight: torch.Tensor) -> kernels.Kernels:
    """triton or torch."""
    wanted: kernels.Kernels | None = "triton" if impl == "triton" else "torch" if impl == "torch" else None
    try:
        with kernels.use_kernels(wanted):
            chosen = kernels.chosen(weight)
    except ImportError as error:
        raise EngineError(f"engine.impl: {impl}: {error}") from None
    if chosen == "triton" and not weight.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise EngineError("engine.impl: triton needs the model on a CUDA device; use auto or torch")
    return chosen


def _fuse(name: str, module: Any, options: dict[str, Any]) -> str | None:
    """Switch one layer's class. Returns why not, or None."""
    if not isinstance(module, LoraLayer):
        return f"a layer of PEFT's {type(module).__module__.split('.')[2]} method is not supported"
    if type(module) not in FUSED:
        return f"a layer of type {type(module).__name__} is not supported"
    if any(parameter.is_meta for parameter in module.parameters()):
        return "its weights are not loaded yet (they are on the meta device)"
    if getattr(module, "fan_in_fan_out", False):
        return "a transposed (Conv1D) weight is not supported"
    for adapter in module.lora_A:
        if why := unsupported(module, adapter):
            return why
    try:
        state = FusedState(name, module, **options)
    except Unfusable as reason:
        return str(reason)
    module.__class__ = FUSED[type(module)]
    module.__dict__["fused"] = state
    state.repacks = bool(set_repacking(module.base_layer, False))
    return None


def _restore_class(module: Any) -> None:
    state: FusedState = module.__dict__.pop("fused")
    module.__class__ = next(theirs for theirs, ours in FUSED.items() if ours is type(module))
    if state.repacks:
        set_repacking(module.base_layer, True)
    module.__dict__[_MAGNITUDES] = state.magnitudes_before


def _restore_magnitudes(module: Any) -> None:
    """Give untrained magnitudes the values PEFT had given them."""
    for adapter, (before, ours) in module.__dict__.pop(_MAGNITUDES, {}).items():
        magnitude = module.lora_magnitude_vector[adapter].weight
        if torch.equal(magnitude.data, ours):
            magnitude.data.copy_(before)


def _set_fresh_magnitudes(module: Any) -> bool:
    """Set m := c where training has not begun: B = 0 and m equal to c up to rounding."""
    was_set = False
    for adapter, layer in module.lora_magnitude_vector.items():
        if bool(module.lora_B[adapter].weight.any()):
            continue
        with torch.no_grad():
            norms = module.fused.norms(module, adapter)
            magnitude = layer.weight.data
            untrained = magnitude.device == norms.device and torch.allclose(
                magnitude.float(), norms.float(), rtol=_FRESH
            )
            if untrained:
                before = magnitude.clone()
                magnitude.copy_(norms)
                follow(magnitude, norms, module.fused.cache(module, adapter).unscaled_rows)
                module.fused.magnitudes_before[adapter] = (before, magnitude.clone())
                was_set = True
    return was_set


def _hook_blocks(model: Any, report: EngineReport) -> None:
    counts = {"qkv": 0, "o": 0, "mlp": 0}
    for name, module in model.named_modules():
        if hooks.mlp_layers(module) is not None:
            why = hooks.hook_mlp(module)
            if why:
                report.skipped[name] = f"{why}; its layers are fused one by one"
            counts["mlp"] += why is None
        if "apply_qkv" in module.__dict__ and hasattr(module, "q_proj"):
            qkv, o = hooks.hook_attention(module)
            counts["qkv"] += qkv
            counts["o"] += o
    report.blocks = counts
