"""Are the merged weights what the adapter makes of the base? Recomputed by somebody else.

The merge is our own code, so it is not asked to confirm itself. PEFT builds each adapted layer
from the base's tensor and the adapter's file, reads the adapter's config in its own way and
merges with its own arithmetic in fp32. The norm is per output row, hence a few rows of a layer
are a fair sample of it: every layer is recomputed on some rows, `sample` of them on all rows.
Two measures, because one is not enough: the relative error says that the weights are right up to
rounding; the share of values that differ after the same rounding says it even for a light tune,
whose whole update is smaller than the rounding error of bfloat16. Everything that should not have
changed is compared bit by bit, all of it. A weight stored in NF4 is compared bit by bit with the NF4
of the merged weight that is held against PEFT's. Behaviour is `behaviour.py`'s business.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qdora_fast.adapter import WEIGHTS_NAME, Adapter
from qdora_fast.base_weights import BaseWeights, MergeRecipe
from qdora_fast.merged_model import MergedModel
from qdora_fast.weights import TensorInfo, WeightFolder

ROWS = 64
"""Rows recomputed of a layer that is not recomputed whole."""

ERROR_LIMITS = {torch.bfloat16: 4e-3, torch.float16: 5e-4}
"""Largest relative Frobenius error, by dtype. Rounding alone: 1.7e-3 in bfloat16, 2.1e-4 in float16."""
EXACT_LIMIT = 1e-5
"""The same for wider dtypes."""
DIFFERING_LIMIT = 0.02
"""Largest share of 16-bit values that differ from PEFT's, rounded alike. Order of summation: about 1e-4."""


@dataclass(frozen=True)
class WeightProof:
    """What was compared, and everything that was found wrong."""

    merge_base: str
    layers: int
    """Adapted layers, each recomputed on at least `ROWS` rows."""
    whole_layers: tuple[str, ...]
    """Those recomputed on all rows."""
    untouched: int
    """Tensors compared bit by bit."""
    packed: int
    """Weights whose NF4 was compared bit by bit."""
    worst_error: float
    """Largest relative Frobenius error of a layer."""
    worst_differing: float
    """Largest share of a layer's values that differ after the same rounding (0 for 32-bit weights)."""
    faults: tuple[str, ...]
    """One sentence per tensor that is wrong."""

    @property
    def passed(self) -> bool:
        """True when nothing was found wrong."""
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """For export.json."""
        return {"passed": self.passed, **asdict(self)}


def prove_weights(
    base: Path,
    adapter: Path,
    merged: Path,
    recipe: MergeRecipe | None = None,
    *,
    sample: int = 8,
    seed: int = 0,
) -> WeightProof:
    """Compare every tensor of a merged checkpoint with what it should be.

    Args:
        base, adapter: what was merged.
        merged: what came out.
        recipe: how it was merged.
        sample: layers recomputed on all their rows; the others on `ROWS` rows at a random place.
        seed: of the choice of layers and rows.

    Raises:
        ConfigError, IntegrityError: one of the folders cannot be read, or base and adapter do not fit.
    """
    recipe = recipe or MergeRecipe()
    model, result = MergedModel(base, adapter, recipe), WeightFolder(merged)
    weights, update = model.weights, model.update
    expected_infos = {info.name: info for infos in model.shards.values() for info in infos}
    faults = _structure_faults(expected_infos, result)
    draw = random.Random(seed)
    whole = set(draw.sample(sorted(update.modules), min(sample, len(update.modules))))
    errors, differing, untouched = [0.0], [0.0], 0
    for name, info in weights.infos.items():
        if result.infos.get(name) != expected_infos[name]:
            continue  # already a fault
        rows = result.rows
        if name in model.packed:
            faults += _packed_faults(name, model, result)
            rows = model.rows
        layer = name.removesuffix(".weight")
        if name.endswith(".weight") and layer in update.modules:
            start = draw.randrange(max(1, info.rows - ROWS + 1))
            spans = list(info.blocks()) if layer in whole else [(start, min(info.rows, start + ROWS))]
            comparison = _Comparison(info.dtype)
            for start, stop in spans:
                held = weights.rows(name, start, stop)
                expected = _merged_by_peft(update, layer, held.to(torch.float32), start)
                comparison.add(rows(name, start, stop), held, expected)
            errors.append(comparison.error)
            differing.append(comparison.differing)
            faults += comparison.faults(name)
        elif name not in model.packed:
            untouched += 1
            faults += _untouched_faults(info, weights, update, result)
    return WeightProof(
        merge_base=recipe.merge_base,
        layers=len(update.modules),
        whole_layers=tuple(sorted(whole)),
        untouched=untouched,
        packed=len(model.packed),
        worst_error=max(errors),
        worst_differing=max(differing),
        faults=tuple(faults),
    )


@dataclass
class _Comparison:
    """Rows of one merged layer against PEFT's, added up block by block."""

    dtype: torch.dtype
    off: float = 0.0
    """Squared norm of the difference."""
    length: float = 0.0
    """Squared norm of PEFT's rows."""
    unequal: int = 0
    values: int = 0
    as_base: bool = True
    """So far every value is the base's."""
    should_be_base: bool = True
    """So far the update is too small to change any value of this dtype."""

    def add(self, actual: Tensor, held: Tensor, expected: Tensor) -> None:
        """Take in some rows, all [n, in]: merged ones, the base's, and PEFT's in fp32."""
        rounded, unchanged = expected.to(self.dtype), held.to(self.dtype)
        self.off += float((actual.to(torch.float32) - expected).norm()) ** 2
        self.length += float(expected.norm()) ** 2
        self.unequal += int((actual != rounded).sum())
        self.values += actual.numel()
        self.as_base &= torch.equal(actual, unchanged)
        self.should_be_base &= torch.equal(rounded, unchanged)

    @property
    def error(self) -> float:
        """Relative Frobenius error; an all-zero layer must be exactly zero."""
        return math.sqrt(self.off / self.length) if self.length else math.inf if self.off else 0.0

    @property
    def differing(self) -> float:
        """Share of values that are not PEFT's after the same rounding; 0 where nothing is rounded."""
        return self.unequal / self.values if self.dtype.itemsize == 2 else 0.0

    def faults(self, name: str) -> list[str]:
        """What is wrong with the layer, in words."""
        limit = ERROR_LIMITS.get(self.dtype, EXACT_LIMIT)
        if self.as_base and not self.should_be_base:
            return [f"{name}: still the base's weights; the adapter was not merged into it"]
        if not self.error <= limit:
            return [f"{name}: {self.error:.2%} off PEFT's merge (limit {limit:.3%}): wrong base, magnitude or scale"]
        if self.differing > DIFFERING_LIMIT:
            return [f"{name}: {self.differing:.1%} of its values are not PEFT's (limit {DIFFERING_LIMIT:.0%})"]
        return []


def _merged_by_peft(update: Adapter, layer: str, weight: Tensor, start: int) -> Tensor:
    """Let PEFT merge rows [start, start + n) of one layer, weight [n, in] in fp32, from the adapter's own files."""
    from peft import LoraConfig, inject_adapter_in_model
    from safetensors import safe_open

    root = parent = nn.Module()
    *path, leaf = layer.split(".")
    for part in path:
        child = nn.Module()
        parent.add_module(part, child)
        parent = child
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    parent.add_module(leaf, linear)
    config = LoraConfig.from_pretrained(str(update.folder))
    others = dict.fromkeys(("modules_to_save", "exclude_modules", "layers_to_transform", "layers_pattern"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rank_pattern and alpha_pattern name other layers too
        inject_adapter_in_model(replace(config, target_modules=[layer], **others), root)
    adapted: Any = root.get_submodule(layer)
    rows = slice(start, start + len(weight))
    with safe_open(update.folder / WEIGHTS_NAME, framework="pt") as file, torch.no_grad():
        stem = f"base_model.model.{layer}"
        adapted.lora_A["default"].weight.copy_(file.get_tensor(f"{stem}.lora_A.weight"))
        adapted.lora_B["default"].weight.copy_(file.get_slice(f"{stem}.lora_B.weight")[rows])
        if config.use_dora:
            adapted.lora_magnitude_vector["default"].weight.copy_(file.get_slice(f"{stem}.lora_magnitude_vector")[rows])
        adapted.merge()
        merged = adapted.get_base_layer().weight.data
    zero = ~weight.any(dim=1) & merged.isnan().all(dim=1)  # PEFT divides an all-zero row by its norm
    merged[zero] = 0.0
    return merged


def _structure_faults(wanted: Mapping[str, TensorInfo], result: WeightFolder) -> list[str]:
    """Tensors missing, extra, or of another dtype or shape than the recipe says."""
    missing, extra = wanted.keys() - result.infos.keys(), result.infos.keys() - wanted.keys()
    faults = [f"{name}: missing" for name in sorted(missing)] + [f"{name}: not in the base" for name in sorted(extra)]
    for name in sorted(wanted.keys() & result.infos.keys()):
        should, found = wanted[name], result.infos[name]
        if should != found:
            faults.append(f"{name}: {found.dtype} {found.shape}, expected {should.dtype} {should.shape}")
    return faults


def _packed_faults(name: str, model: MergedModel, result: WeightFolder) -> list[str]:
    """Compare what stores a weight in NF4 bit by bit with the NF4 of the merged weight."""
    for part, expected in model.packed_weight(name).parts().items():
        stored = f"{name}.{part}" if part else name
        if stored in result.infos and not torch.equal(_bits(result.tensor(stored)), _bits(expected)):
            return [f"{stored}: not the NF4 of the merged weight"]
    return []


def _untouched_faults(info: TensorInfo, weights: BaseWeights, update: Adapter, result: WeightFolder) -> list[str]:
    """Compare a tensor without an adapter bit by bit: with the base's, its 4-bit round trip, or the adapter's own."""
    saved = info.name in update.saved_modules
    for start, stop in info.blocks():
        source = update.saved_rows if saved else weights.rows
        expected = source(info.name, start, stop).to(info.dtype)
        if not torch.equal(_bits(result.rows(info.name, start, stop)), _bits(expected)):
            origin = "the adapter's" if saved else "the base's"
            return [f"{info.name}: differs from {origin} in rows {start}-{stop - 1}, where it should be the same"]
    return []


def _bits(values: Tensor) -> Tensor:
    """The bytes of a tensor, so that NaN equals itself and -0 does not equal 0."""
    return values.contiguous().reshape(-1).view(torch.uint8)
