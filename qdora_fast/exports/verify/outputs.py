"""Does the exported folder compute what was trained? Two comparisons with PEFT's own function of the saved adapter.

    trained model, recorded live     =  PEFT's function on the base as training held it        `trained_function`
    folder, opened by plain readers  =  PEFT's merge into the named base, rounded as stored    `exported_function`

The weights proof (`weights.py`) ties the second to the first: what is stored is PEFT's merge, value by value. All
of it is run in fp32, one layer at a time (`streamed.py`), PEFT's function being x Wᵀ with the rows that PEFT
merges. So both sides of the second comparison differ by the order of summation alone, and its limit is that
of fp32. The first is recorded in the precision of training: in bf16 or fp16 PEFT's own function, computed in that
precision, is measured beside it, and ours may be as far from fp32 as that is, with a factor for luck.

What this does not do: say whether the exported function is as good as the trained one; see `distance.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from qdora_fast.exports.merge.base import BaseWeights, MergeRecipe
from qdora_fast.exports.merge.merged_model import MergedModel
from qdora_fast.exports.verify.peft_layers import merged_by_peft, tokens_merged_by_peft
from qdora_fast.exports.verify.recording import Agreement, Recording, Rows, compare
from qdora_fast.exports.verify.streamed import Linear, computed_with, open_streamed, record_streamed
from qdora_fast.models.adapter import read_adapter
from qdora_fast.models.out_of_memory import release_memory
from qdora_fast.models.weights import TensorInfo

EXACT_KL = 1e-6
"""Nats per position. What two fp32 computations of one function may differ by; measured: see LOG.md."""
LUCK = 4.0
"""In 16 bits: KL grows with the square of the error, so this is twice the error of PEFT's own function."""


@dataclass(frozen=True)
class Models:
    """What is opened, and what it is made of.

    Attributes:
        exported: the folder that was built.
        adapter: the run's.
        base, recipe: what was merged, and how.
        trained_base: the base that training loaded: another folder than `base` where that was stored in 4 bits.
        quantized: modules that training held in NF4; none after training on 16 bits.
        precision: dtype of training.
    """

    exported: Path
    adapter: Path
    base: Path
    recipe: MergeRecipe
    trained_base: Path
    quantized: frozenset[str]
    precision: torch.dtype


@dataclass(frozen=True)
class OutputProof:
    """Both comparisons, and PEFT's own error in 16 bits."""

    trained: Agreement
    """PEFT's function on the trained base, in fp32, against the live model."""
    rounding: Agreement | None
    """The same against itself in the precision of training; None where that is fp32."""
    exported: Agreement
    """PEFT's merge, rounded as stored, against the opened folder."""

    @property
    def limits(self) -> dict[str, float]:
        """Largest KL, in nats per position."""
        noise = self.rounding.mean_kl if self.rounding else 0.0
        return {"trained_function": max(EXACT_KL, LUCK * noise), "exported_function": EXACT_KL}

    @property
    def checks(self) -> list[dict[str, Any]]:
        """For export.json: name, passed, words, value, limit."""
        found = {
            "trained_function": (self.trained, "the trained model computes PEFT's function of the saved adapter"),
            "exported_function": (self.exported, "the folder, opened with plain Transformers, computes PEFT's merge"),
        }
        return [
            {
                "name": name,
                "passed": agreement.mean_kl <= self.limits[name],  # false for NaN
                "words": f"{said}: KL {agreement.mean_kl:.2g} (limit {self.limits[name]:.2g})",
                "value": agreement.mean_kl,
                "limit": self.limits[name],
            }
            for name, (agreement, said) in found.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """For export.json."""
        return asdict(self)


class OutputRecorder:
    """Records the functions that are compared, each in the exported model, which is opened once for all in fp32.

    Args:
        models: what they are made of.
        rows: the proof rows.
        device: where to compute.
        scratch: a folder on a disk with room.
    """

    def __init__(self, models: Models, rows: Rows, *, device: str, scratch: Path) -> None:
        self._models, self._rows = models, rows
        self._update = read_adapter(models.adapter)
        self._open: Callable[[torch.dtype], Any] = lambda dtype: open_streamed(
            models.exported, device=device, dtype=dtype, scratch=scratch, packed=models.recipe.nf4
        )
        self._model = self._open(torch.float32)

    def exported(self) -> Recording:
        """The folder as it is."""
        return record_streamed(self._model, self._rows)

    def trained(self) -> Recording:
        """PEFT's function on the base that was trained, in fp32."""
        with computed_with(self._model, self._trained_layers()):
            return record_streamed(self._model, self._rows)

    def rounding(self) -> Recording | None:
        """The same in the precision of training; None where that is fp32."""
        if self._models.precision == torch.float32:
            return None
        model = self._open(self._models.precision)
        with computed_with(model, self._trained_layers()):
            recording = record_streamed(model, self._rows)
        del model
        release_memory()
        return recording

    def merged(self) -> Recording:
        """PEFT's merge into the named base, rounded as it is stored; layers in NF4 as they unpack."""
        models = self._models
        whole = MergedModel(models.base, models.adapter, models.recipe)
        functions = self._token_layers(rounded=True)
        for layer in {*self._update.modules, *(name.removesuffix(".weight") for name in whole.packed)}:
            info = whole.weights.infos[f"{layer}.weight"]
            packed = info.name in whole.packed
            functions[layer] = (
                _unpacking(whole, info) if packed else _multiplying(info, self._merging(whole.weights, layer))
            )
        with computed_with(self._model, functions):
            return record_streamed(self._model, self._rows)

    def _trained_layers(self) -> dict[str, Linear]:
        """Adapted layers as PEFT merges them in fp32, the other quantised ones as they unpack."""
        models = self._models
        recipe = MergeRecipe(
            "dequant4" if models.quantized else "original16", models.quantized or None, models.precision
        )
        base = BaseWeights(models.trained_base, recipe, self._update.tensors)
        functions = self._token_layers(rounded=False)
        for layer in {*self._update.modules, *models.quantized}:
            info = base.infos[f"{layer}.weight"]
            exact = TensorInfo(info.name, torch.float32, info.shape)
            functions[layer] = _multiplying(exact, self._merging(base, layer))
        return functions

    def _token_layers(self, *, rounded: bool) -> dict[str, Linear]:
        """Embeddings and head with the rows of trained tokens as PEFT merges them: in fp32, or rounded as stored."""
        models = self._models
        whole = MergedModel(models.base, models.adapter, models.recipe)
        functions = {}
        for name, tokens in self._update.tokens.items():
            dtype = whole.infos[name].dtype if rounded else torch.float32
            replaced = {
                number: tokens_merged_by_peft(self._update, name, whole.held_rows(name, number, number + 1), number)[0]
                for number in tokens.ids
            }
            for layer in _sharing(self._model, name.removesuffix(".weight")):
                functions[layer] = _with_rows({number: row.to(dtype) for number, row in replaced.items()})
        return functions

    def _merging(self, base: BaseWeights, layer: str) -> Callable[[int, int], Tensor]:
        """Rows of a layer, in fp32, merged by PEFT where it is adapted."""
        name = f"{layer}.weight"
        if layer not in self._update.modules:
            return lambda start, stop: base.rows(name, start, stop)
        return lambda start, stop: merged_by_peft(self._update, layer, base.rows(name, start, stop), start)


def judge(
    live: Recording, trained: Recording, rounding: Recording | None, merged: Recording, exported: Recording
) -> OutputProof:
    """Put recordings together: `live` of the trained model in the process that trained it, the others from
    `OutputRecorder`."""
    noise = compare(trained, rounding) if rounding else None
    return OutputProof(compare(trained, live), noise, compare(merged, exported))


def _sharing(model: Any, layer: str) -> list[str]:
    """The layer, and the head where it has no weights of its own."""
    modules = {id(module): name for name, module in model.named_modules()}
    head = modules.get(id(model.get_output_embeddings()))
    return [layer, head] if head is not None and f"{head}.weight" in model.all_tied_weights_keys else [layer]


def _with_rows(rows: Mapping[int, Tensor]) -> Linear:
    """The module's own forward with other rows in its weight."""

    def forward(module: Any, x: Tensor) -> Tensor:
        weight = module.weight.detach()
        numbers = torch.tensor(list(rows), device=weight.device)
        weight = weight.index_copy(0, numbers, torch.stack(list(rows.values())).to(weight))
        other = copy.copy(module)
        other.__dict__["_parameters"] = {**module._parameters, "weight": nn.Parameter(weight, requires_grad=False)}
        y: Tensor = type(module).forward(other, x)
        return y

    return forward


def _multiplying(info: TensorInfo, rows: Callable[[int, int], Tensor]) -> Linear:
    """x Wᵀ + b with W made in blocks of rows and rounded to the dtype of `info`; x [..., in] -> [..., out]."""

    def forward(module: Any, x: Tensor) -> Tensor:
        parts = (rows(start, stop).to(info.dtype).to(x.device, x.dtype) for start, stop in info.blocks())
        y = torch.cat([linear(x, part) for part in parts], dim=-1)
        return y if module.bias is None else y + module.bias.to(y.dtype)

    return forward


def _unpacking(whole: MergedModel, info: TensorInfo) -> Linear:
    """The same with a weight that is stored in NF4, unpacked in fp32."""
    exact = TensorInfo(info.name, torch.float32, info.shape)

    def forward(module: Any, x: Tensor) -> Tensor:
        weight = whole.packed_weight(info.name)
        return _multiplying(exact, lambda start, stop: weight.rows(start, stop, torch.float32))(module, x)

    return forward
