"""Are these weights the base that a run was trained on? A sample is kept while training and asked for at the merge.

An adapter merged into a relative of its base (another revision, the chat version, a folder whose files were replaced)
loads, answers, and can be closer to the trained model than NF4's own error is. So a run keeps a few blocks of every
weight, as training held it: the 4-bit codes of an NF4 layer, the values of embeddings, norms and other layers. The same
blocks of the named base, rounded in the same way, must be the same. The one exception is a value so near the middle
between two codes that two processors can round it differently.

A base that was stored in 4 bits by somebody else may have been made from another precision of the same weights. There,
and only there, up to `MOST_DIFFERING` of the codes may differ, and the share is said.

What this does not do: look at every value. The proof's other checks see other differences by what they compute.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdora_fast.models.nf4 import BLOCK, codes_of
from qdora_fast.models.stored_names import open_weights
from qdora_fast.models.weights import TensorInfo, WeightFolder
from qdora_fast.system.atomic import let_read

RECORD = "base_sample.safetensors"
BLOCKS = 32
"""Of each weight, evenly spread: 1 KiB of codes, 4 of bfloat16; half a MiB for an 8B model."""
MOST_DIFFERING = 0.01
"""Share of a layer's codes, where 4 bits were made elsewhere. Made from bfloat16 instead of fp32: 0.4 %; from weights
with noise of half a percent: 1.5 %."""
TIE = 8 * 2.0**-24
"""Distance from the middle between two codes, of values scaled to 1, within which a division in fp32 may round it to
either: a few units of roundoff."""


@dataclass(frozen=True)
class Sample:
    """Some blocks of the frozen weights of a run's base."""

    values: dict[str, Tensor]
    """Name of the weight -> codes (uint8, two in a byte) or values, flat."""
    others: Mapping[str, int] = field(default_factory=dict)
    """Those that belong to no adapted layer, with their number of values; see `_other_differs`."""
    spread: bool = True
    """Blocks from all over each layer; False in runs before version 2 of the record, which kept the beginning."""

    def save(self, file: Path) -> None:
        """Write to a safetensors file."""
        from safetensors.torch import save_file

        save_file(self.values, file, metadata={"others": json.dumps(dict(self.others)), "version": "2"})

    @classmethod
    def load(cls, file: Path) -> Sample:
        """Read what `save`, or an earlier version, wrote."""
        from safetensors import safe_open

        with safe_open(file, framework="pt") as tensors:
            facts = tensors.metadata() or {}
            others = json.loads(facts.get("others", "{}"))
            return cls({name: tensors.get_tensor(name) for name in tensors.keys()}, others, "version" in facts)  # noqa: SIM118


def take(model: Any, modules: Sequence[str]) -> Sample:
    """Sample the frozen weights of a loaded base.

    Args:
        model: the base, or a PEFT model on it, whose own weights are left out.
        modules: names of the adapted layers as in the base (`model.layers.0.mlp.up_proj`).
    """
    adapted = {f"{name}.weight" for name in modules}
    weights = {_plain(name): parameter for name, parameter in model.named_parameters() if not _of_peft(name)}
    values = {name: _picked(weight.data) for name, weight in weights.items()}
    return Sample(values, {name: weight.numel() for name, weight in weights.items() if name not in adapted})


def _picked(weight: Tensor) -> Tensor:
    flat = weight.flatten()
    packed = weight.dtype == torch.uint8
    picked = _positions(flat.numel() * (2 if packed else 1))
    picked = picked[::2] // 2 if packed else picked
    return flat[picked.to(flat.device)].detach().to("cpu", copy=True)


def keep(model: Any, modules: Sequence[str], folder: Path) -> None:
    """Keep a sample with its run. A resumed run keeps the one of its start."""
    if not (folder / RECORD).is_file():
        take(model, modules).save(folder / RECORD)
        let_read(folder / RECORD)


def load(folder: Path) -> Sample | None:
    """The sample of a run; None where it has none."""
    return Sample.load(folder / RECORD) if (folder / RECORD).is_file() else None


@dataclass(frozen=True)
class BaseMatch:
    """What a folder of weights has in common with a sample."""

    weights: int
    """How many were compared."""
    differing: float
    """Share of the values that differ, in the weight where most do; 1 where it is not there or has another form."""
    worst: str
    packed_elsewhere: bool
    """Training read its base in 4 bits."""

    @property
    def passed(self) -> bool:
        """Whether it is the base of the sample."""
        return self.differing <= (MOST_DIFFERING if self.packed_elsewhere else 0.0)

    @property
    def words(self) -> str:
        """The finding as one sentence."""
        if not self.passed:
            return (
                f"the base is not the one trained on: {self.worst} differs in {self.differing:.2%} of its values; "
                "name the very model that was trained on, in its revision"
            )
        text = f"the base is the one trained on: blocks of {self.weights} weights are as training held them"
        if self.differing:
            text += f", but for {self.differing:.2%} of the codes: its 4 bits were made from another precision"
        return text


def compare(sample: Sample, base: Path, dtype: torch.dtype | None, *, packed_elsewhere: bool = False) -> BaseMatch:
    """Compare the weights in `base` with a sample.

    Args:
        dtype: in which training loaded the base; None: that of the files.
        packed_elsewhere: training read its base in 4 bits, so that it is not known from which dtype they were made.

    Raises:
        ConfigError, IntegrityError: see `stored_names.open_weights`.
    """
    files = open_weights(base, sample.values)
    dtypes = [torch.bfloat16, torch.float16, torch.float32] if packed_elsewhere else [dtype]
    shares = {
        name: min(_differing(kept, files, name, each, sample.spread) for each in dtypes)
        for name, kept in sample.values.items()
        if name not in sample.others
    }
    if not packed_elsewhere:
        shares |= {
            name: _other_differs(sample.values[name], files, name, size, dtype) for name, size in sample.others.items()
        }
    worst = max(shares, key=lambda name: shares[name])
    return BaseMatch(len(shares), shares[worst], worst.removesuffix(".weight"), packed_elsewhere)


def _other_differs(kept: Tensor, files: WeightFolder, name: str, size: int, dtype: torch.dtype | None) -> float:
    """The same of a weight that no adapter is on: 0 where the folder holds it under another name or in another size.

    It may have been loaded in `dtype` or in its own; Unsloth adds the 1 of Gemma's norms to their weights.
    """
    info = files.infos.get(name)
    if info is None or math.prod(info.shape) != size or not (info.dtype.is_floating_point and kept.is_floating_point()):
        return 0.0
    found = _read(files, info, _positions(size))
    forms = [found, found.to(dtype or found.dtype)]
    forms += [form.float() + 1 for form in forms] if len(info.shape) == 1 else []
    return min(float((kept != form.to(kept.dtype)).double().mean()) for form in forms)


def _differing(kept: Tensor, files: WeightFolder, name: str, dtype: torch.dtype | None, spread: bool) -> float:
    """Share of the sampled values of one layer that are not as kept; 1 where they cannot be compared."""
    info = files.infos.get(name)
    if info is None:
        return 1.0
    codes, packed = kept.dtype == torch.uint8, info.dtype == torch.uint8
    count = len(kept) * (2 if codes else 1)
    values = math.prod(info.shape) * (2 if packed else 1)
    picked = _positions(values) if spread else torch.arange(min(count, values))
    if packed > codes or abs(len(picked) - count) > codes:
        return 1.0
    if packed:
        return float((_unpacked(kept) != _unpacked(_read(files, info, picked[::2] // 2))).double().mean())
    found = _read(files, info, picked)
    if not codes:
        return float((kept != found.to(dtype or found.dtype).to(kept.dtype)).double().mean())
    found = found.to(dtype or found.dtype)
    return _other_codes(_unpacked(kept)[: len(found)], found) / len(found)


def _other_codes(kept: Tensor, values: Tensor) -> int:
    """How many 4-bit codes, flat, are not those of `values`, ties apart."""
    from bitsandbytes.functional import get_4bit_type

    codes = _unpacked(codes_of(values))[: len(values)]
    wrong = (codes != kept).nonzero()[:, 0]
    table = get_4bit_type("nf4", device="cpu").double()
    blocks = torch.nn.functional.pad(values.double().abs(), (0, -len(values) % BLOCK)).view(-1, BLOCK)
    scaled = values.double()[wrong] / blocks.amax(dim=1)[wrong // BLOCK].clamp_min(torch.finfo(torch.float64).tiny)
    ours, theirs = codes[wrong].long(), kept[wrong].long()
    tie = ((ours - theirs).abs() == 1) & ((scaled - (table[ours] + table[theirs]) / 2).abs() <= TIE)
    return int((~tie).sum())


def _read(files: WeightFolder, info: TensorInfo, picked: Tensor) -> Tensor:
    """Values at flat positions, ascending, of a tensor on the disk; read in rows."""
    width = max(1, math.prod(info.shape[1:]))
    parts = []
    for start, stop in info.blocks():
        inside = picked[(picked >= start * width) & (picked < stop * width)]
        if len(inside):
            first, last = int(inside[0]) // width, int(inside[-1]) // width + 1
            parts.append(files.rows(info.name, first, last).flatten()[inside - first * width])
    return torch.cat(parts)


def _positions(values: int) -> Tensor:
    """Flat positions of whole blocks, evenly spread over a tensor, the first and the last among them."""
    count = -(-values // BLOCK)
    blocks = torch.linspace(0, count - 1, min(BLOCKS, count), dtype=torch.float64).round().long().unique()
    picked = (blocks[:, None] * BLOCK + torch.arange(BLOCK)).flatten()
    return picked[picked < values]


def _unpacked(codes: Tensor) -> Tensor:
    return torch.stack([codes >> 4, codes & 15], dim=1).flatten()


def _of_peft(name: str) -> bool:
    return any(part in name for part in (".lora_", ".modules_to_save.", ".trainable_tokens_delta."))


def _plain(name: str) -> str:
    """A parameter's name without what PEFT puts around it."""
    for part in ("base_model.model.", ".token_adapter", ".base_layer", ".original_module"):
        name = name.replace(part, "", 1)
    return name
