"""Are the merged weights what the adapter makes of the base? Every value, asked twice.

First of PEFT, since the merge is our own code and is not asked to confirm itself: PEFT merges each
adapted layer in fp32 (`peft_layers.py`), and a stored value passes if it is the rounding of a
number that PEFT's can be told from by no more than the order of summation. That leaves open the few
values that lie so near the middle between two neighbours that both orders are right. So, second, the
merge is computed once more from base and adapter, and everything stored must be that, bit for bit: merged
layers, tensors that should not have changed, and the parts of weights in NF4. Together they find
any wrong value, whether the merge was wrong or what was written is not what was merged.
Outputs are `outputs.py`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdora_fast.exports.merge.base import MergeRecipe
from qdora_fast.exports.merge.merged_model import MergedModel
from qdora_fast.exports.verify.peft_layers import merged_by_peft, tokens_merged_by_peft
from qdora_fast.models.adapter import AdapterModule
from qdora_fast.models.nf4 import stored_infos
from qdora_fast.models.stored_names import open_weights
from qdora_fast.models.weights import TensorInfo, WeightFolder, one_thread

UNIT = 2.0**-24
"""Unit roundoff of fp32."""
LAMBDA = 8
"""A sum of n terms in fp32 is off by at most n units of roundoff, and by less than LAMBDA * sqrt(n) of them with a
probability that no run will see the end of (Higham and Mary 2019, theorem 2.4: a failure in 2n exp(-LAMBDA^2 / 2))."""


@dataclass(frozen=True)
class WeightProof:
    """What was compared, and everything that was found wrong."""

    merge_base: str
    layers: int
    """Adapted layers, each compared with PEFT's merge on all rows."""
    untouched: int
    """Tensors without an adapter."""
    tokens: int
    """Rows of trained tokens, in the embeddings and in a head that has weights of its own."""
    packed: int
    """Weights stored in NF4."""
    values: int
    """Values compared with PEFT's."""
    worst_error: float
    """Largest relative Frobenius distance of a stored layer from PEFT's fp32 merge; rounding included."""
    undecided: int
    """Values that are not PEFT's after rounding, but as near to the middle between two neighbours as fp32 can tell."""
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
    on_bytes: Callable[[int], None] | None = None,
) -> WeightProof:
    """Compare every value of a merged checkpoint with what it should be.

    Args:
        base, adapter: what was merged.
        merged: what came out.
        recipe: how it was merged.
        on_bytes: told the size of every tensor that was compared (`MergedModel.total_bytes` in all).

    Raises:
        ConfigError, IntegrityError: one of the folders cannot be read, or base and adapter do not fit.
    """
    recipe = recipe or MergeRecipe()
    model = MergedModel(base, adapter, recipe)
    expected = {info.name: info for infos in model.shards.values() for info in infos}
    result = open_weights(merged, expected)
    faults = _structure_faults(expected, result)
    comparisons = []
    for name, info in model.infos.items():
        parts = [part.name for part in stored_infos(info)] if name in model.packed else [name]
        if any(result.infos.get(part) != expected[part] for part in parts):
            continue  # already a fault
        found = _packed_faults(name, model, result) if name in model.packed else []
        layer = name.removesuffix(".weight")
        if name.endswith(".weight") and layer in model.update.modules:
            comparison = _compare_layer(model, info, model.rows if name in model.packed else result.rows)
            comparisons.append(comparison)
            found = comparison.faults(name) or found
        if name in model.tokens:
            found = _token_faults(info, model, result)
        if not found and name not in model.packed:
            found = _stored_faults(info, model, result)
        faults += found
        if on_bytes:
            on_bytes(sum(expected[part].nbytes for part in parts))
    return WeightProof(
        merge_base=recipe.merge_base,
        layers=len(model.update.modules),
        untouched=len(model.infos.keys() - {f"{n}.weight" for n in model.update.modules} - model.packed)
        - len(model.tokens),
        tokens=sum(len(rows.ids) for rows in model.tokens.values()),
        packed=len(model.packed),
        values=sum(comparison.values for comparison in comparisons),
        worst_error=max((comparison.error for comparison in comparisons), default=0.0),
        undecided=sum(comparison.undecided for comparison in comparisons),
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
    wrong: int = 0
    undecided: int = 0
    values: int = 0
    as_base: bool = True
    """So far every value is the base's."""
    should_be_base: bool = True
    """So far the update is too small to change any value of this dtype."""

    def add(self, actual: Tensor, held: Tensor, expected: Tensor, slack: Tensor) -> None:
        """Take in some rows, all [n, in]: stored ones, the base's, PEFT's in fp32, and how far those may be off."""
        rounded, unchanged = expected.to(self.dtype), held.to(self.dtype)
        lowest, highest = (expected - slack).to(self.dtype), (expected + slack).to(self.dtype)
        right = (lowest <= actual) & (actual <= highest)  # false for NaN
        self.off += float((actual.to(torch.float32) - expected).norm()) ** 2
        self.length += float(expected.norm()) ** 2
        self.wrong += int((~right).sum())
        self.undecided += int((right & (actual != rounded)).sum()) if self.dtype.itemsize == 2 else 0
        self.values += actual.numel()
        self.as_base &= torch.equal(actual, unchanged)
        self.should_be_base &= torch.equal(rounded, unchanged)

    @property
    def error(self) -> float:
        """Relative Frobenius error; an all-zero layer must be exactly zero."""
        return math.sqrt(self.off / self.length) if self.length else math.inf if self.off else 0.0

    def faults(self, name: str) -> list[str]:
        """What is wrong with the layer, in words."""
        if not self.wrong:
            return []
        if self.as_base and not self.should_be_base:
            return [f"{name}: still the base's weights; the adapter was not merged into it"]
        return [
            f"{name}: {self.wrong:,} of {self.values:,} values are not PEFT's merge ({self.error:.2%} off in all): "
            "wrong base, magnitude or scale"
        ]


def _compare_layer(model: MergedModel, info: TensorInfo, rows: Callable[[str, int, int], Tensor]) -> _Comparison:
    """All rows of one adapted layer against PEFT's merge of it."""
    comparison, layer = _Comparison(info.dtype), info.name.removesuffix(".weight")
    module = model.update.modules[layer]
    for start, stop in info.blocks():
        held = model.weights.rows(info.name, start, stop)
        expected = merged_by_peft(model.update, layer, held, start)
        slack = _slack(held.to(torch.float32), module, start, expected)
        comparison.add(rows(info.name, start, stop), held, expected, slack)
    return comparison


def _slack(weight: Tensor, module: AdapterModule, start: int, merged: Tensor) -> Tensor:
    """How far two fp32 merges of the same rows can lie apart, [n, in]; first-order rounding error analysis.

    Each entry of E = W + s B A is a sum of r + 1 products, off by at most (r + 4) units of |W| + s |B| |A|. A row's
    norm c sums n squares of such entries. The merge m E / c takes both errors on; two merges, twice.
    """
    rows = slice(start, start + len(weight))
    lora_a, lora_b = module.lora_a, module.lora_b[rows]
    size = weight.abs() + abs(module.scaling) * (lora_b.abs() @ lora_a.abs())
    entry = (lora_a.shape[0] + 4) * UNIT * size
    if module.magnitude is None:
        return 2 * entry
    with one_thread():
        norm = torch.linalg.vector_norm(weight + module.scaling * (lora_b @ lora_a), dim=1)
    inverse = torch.where(norm > 0, 1 / norm, 0.0)  # a row of zeros stays zero
    of_norm = torch.linalg.vector_norm(entry, dim=1) * inverse + (LAMBDA * math.sqrt(weight.shape[1]) + 8) * UNIT
    gain = module.magnitude[rows].abs() * inverse
    return 2 * (gain[:, None] * entry + merged.abs() * of_norm[:, None])


def _token_faults(info: TensorInfo, model: MergedModel, result: WeightFolder) -> list[str]:
    """Compare the rows of trained tokens with PEFT's merge of them, bit by bit."""
    tokens, wrong = model.tokens[info.name], []
    saved_as = info.name if info.name in model.update.tokens else next(iter(model.update.tokens))  # a tied head's copy
    for start, stop in info.blocks():
        inside = torch.tensor([number - start for number in tokens.ids if start <= number < stop])
        if len(inside):
            held = model.held_rows(info.name, start, stop)
            expected = tokens_merged_by_peft(model.update, saved_as, held, start)[inside].to(info.dtype)
            stored = result.rows(info.name, start, stop)[inside]
            wrong += (start + inside[(stored != expected).any(dim=1)]).tolist()
    if not wrong:
        return []
    return [
        f"{info.name}: rows of {len(wrong)} of {len(tokens.ids)} trained tokens (first id {wrong[0]}) are not PEFT's"
    ]


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


def _stored_faults(info: TensorInfo, model: MergedModel, result: WeightFolder) -> list[str]:
    """Compare a dense tensor bit by bit with the merge, computed once more."""
    different, first = 0, 0
    for start, stop in info.blocks():
        expected = model.rows(info.name, start, stop)
        stored = result.rows(info.name, start, stop)
        if not torch.equal(_bits(stored), _bits(expected)):
            first = first if different else start
            wrong = _bits(stored) != _bits(expected)
            different += int(wrong.view(-1, stored.itemsize).any(dim=1).sum())
    if not different:
        return []
    origin = "the adapter's own" if info.name in model.update.saved_modules else "the base's"
    adapted = info.name.removesuffix(".weight") in model.update.modules
    should = "what this adapter and base give" if adapted else f"{origin}, where they should be the same"
    return [f"{info.name}: {different:,} values, from row {first} on, are not {should}"]


def _bits(values: Tensor) -> Tensor:
    """The bytes of a tensor, so that NaN equals itself and -0 does not equal 0."""
    return values.contiguous().reshape(-1).view(torch.uint8)
