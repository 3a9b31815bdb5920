"""Are these weights the base that a run was trained on? A sample is kept while training and asked for at the merge.

An adapter merged into a sibling of its base (another revision, the chat version, a folder whose files were replaced)
loads, answers, and can be closer to the trained model than NF4's own error is: neither the comparison with PEFT's merge
nor the answers show it. So a run keeps the beginning of some layers, as training held them: the 4-bit codes of an NF4
layer, the values of another one. The same layers of a 16-bit base, rounded in the same way, must give the same.

What this does not do: look at every layer. A base of which only other layers or rows differ is not noticed; a hub
revision is, by `resume.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdora_fast.nf4 import BLOCK, codes_of
from qdora_fast.staging import let_read
from qdora_fast.weights import WeightFolder

RECORD = "base_sample.safetensors"
LAYERS = 16
VALUES = 128 * BLOCK
"""Of each layer: 4 KiB of codes."""
MOST_DIFFERING = 0.01
"""Share of a layer's values. NF4 made from bfloat16 instead of fp32 differs in 0.4 %; from weights with noise of half a
percent, in 1.5 %."""


def take(model: Any, modules: Sequence[str]) -> dict[str, Tensor]:
    """Sample the frozen weights of `modules`, evenly chosen: name of the weight -> codes (uint8) or values, flat.

    Args:
        model: a loaded base, or a PEFT model on it.
        modules: names of linear layers as in the base (`model.layers.0.mlp.up_proj`).
    """
    layers = {_plain(name): module for name, module in model.named_modules()}
    found = {}
    for name in _some(modules):
        weight = layers[name].weight.data.flatten()
        codes = weight.dtype == torch.uint8
        found[f"{name}.weight"] = weight[: VALUES // 2 if codes else VALUES].detach().to("cpu", copy=True)
    return found


def keep(model: Any, modules: Sequence[str], folder: Path) -> None:
    """Keep a sample with its run; that of its start, when it is gone on with."""
    from safetensors.torch import save_file

    if not (folder / RECORD).is_file():
        save_file(take(model, modules), folder / RECORD)
        let_read(folder / RECORD)


def load(folder: Path) -> dict[str, Tensor] | None:
    """The sample of a run; None where it has none."""
    from safetensors.torch import load_file

    return load_file(folder / RECORD) if (folder / RECORD).is_file() else None


@dataclass(frozen=True)
class Agreement:
    """What a folder of weights has in common with a sample."""

    layers: int
    differing: float
    """Share of the values that differ, in the layer where most do; 1 where it is not there or has another form."""
    worst: str

    @property
    def passed(self) -> bool:
        """Whether it is the base of the sample."""
        return self.differing <= MOST_DIFFERING

    @property
    def words(self) -> str:
        """The finding as one sentence."""
        if self.passed:
            return f"the base is the one trained on: {self.layers} of its layers, sampled, are as training held them"
        return (
            f"the base is not the one trained on: {self.worst} differs in {self.differing:.1%} of its values; "
            "name the very model that was trained on, in its revision"
        )


def compare(sample: Mapping[str, Tensor], base: Path, dtype: torch.dtype | None) -> Agreement:
    """Compare the weights in `base` with a sample.

    Args:
        dtype: in which training loaded the base; None: that of the files.

    Raises:
        ConfigError, IntegrityError: see `weights.WeightFolder`.
    """
    files = WeightFolder(base)
    shares = {name: _differing(kept, files, name, dtype) for name, kept in sample.items()}
    worst = max(shares, key=lambda name: shares[name])
    return Agreement(len(shares), shares[worst], worst.removesuffix(".weight"))


def _differing(kept: Tensor, files: WeightFolder, name: str, dtype: torch.dtype | None) -> float:
    """Share of the values of one layer that are not as kept; 1 where they cannot be compared."""
    info = files.infos.get(name)
    if info is None:
        return 1.0
    codes, packed = kept.dtype == torch.uint8, info.dtype == torch.uint8
    count = 2 * len(kept) if codes and not packed else len(kept)
    rows = min(info.rows, -(-count // max(1, math.prod(info.shape[1:]))))
    values = files.rows(name, 0, rows).flatten()[:count]
    if codes and not packed:
        values = codes_of(values.to(dtype or values.dtype))
    if len(values) != len(kept) or packed > codes:
        return 1.0
    if codes:
        kept, values = _unpacked(kept), _unpacked(values)
    return float((kept != values.to(kept.dtype)).double().mean())


def _unpacked(codes: Tensor) -> Tensor:
    return torch.stack([codes >> 4, codes & 15], dim=1).flatten()


def _some(modules: Sequence[str]) -> list[str]:
    """At most LAYERS of them, the first and the last among them."""
    count = min(LAYERS, len(modules))
    return [modules[round(place)] for place in torch.linspace(0, len(modules) - 1, count).tolist()]


def _plain(name: str) -> str:
    """A module's name without what PEFT puts around it."""
    return name.removeprefix("base_model.model.").removesuffix(".base_layer")
