"""The base weights an adapter is merged into: the original ones, or the 4-bit ones training saw.

With W16 the 16-bit weight and Wq = dequantise(NF4(W16)) there are two honest choices:

- `original16` takes W16. The merged model differs from the trained one by the base's own 4-bit
  error, towards the better base, and can be quantised again later.
- `dequant4` takes Wq for every layer that training held in NF4, also those without an adapter.
  The merged model is the trained function; the 4-bit noise stays in it for good.

Both the merge and its proof read their base through `BaseWeights`, so that they mean the same weights, by the
names of the model's modules; `stored_name` says what the files call them. What they do with them is computed
independently. Whatever the choice, what is read here is dense: a base that exists in 4 bits alone is unpacked
(dequant4 only).
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from qdora_fast.models.few_bits import few_bits_of
from qdora_fast.models.nf4 import PackedWeight
from qdora_fast.models.stored_names import open_weights
from qdora_fast.models.weights import TensorInfo
from qdora_fast.system.errors import ConfigError, IntegrityError
from qdora_fast.system.json_files import read_object

_PACKED_STATE = re.compile(r"(?P<tensor>.+)\.quant_state\.bitsandbytes__(nf4|fp4)")
_BLOCK_WEIGHT = re.compile(r"(?>(?:[^.]*\.)+?\d+\.).+\.weight")


@dataclass(frozen=True)
class MergeRecipe:
    """Which base weights, and in which precision."""

    merge_base: Literal["original16", "dequant4"] = "original16"
    """The two choices above."""
    quantized_modules: frozenset[str] | None = None
    """Modules that training held in NF4 (`model.layers.0.mlp.up_proj`, ...), for dequant4 and `nf4`. None: every
    two-dimensional weight inside the blocks. A base stored in 4 bits says it itself, and these are added."""
    trained_dtype: torch.dtype | None = None
    """Dtype in which training loaded the base, from which NF4 was made and to which it is unpacked, for
    dequant4. None: the dtype on disk."""
    dtype: torch.dtype | None = None
    """Dtype of what is written. None: as in the base."""
    nf4: bool = False
    """Write those modules in NF4 once they are merged; all others stay as they are."""


class BaseWeights:
    """A base checkpoint as the recipe wants it: dense tensors, read by rows.

    Args:
        folder: of the base.
        recipe: what is wanted.
        needed: names of tensors in the model that will be asked for, besides the recipe's.

    Attributes:
        config: the base's config.json.
        shards: file name -> tensors to write there, with the dtype and shape they will have.
        infos: the same by tensor name. All names are the model's.
        quantized: names of the tensors that went through NF4.

    Raises:
        ConfigError: the base's weights do not allow this recipe, or are not safetensors.
        IntegrityError: files are damaged, or a recorded NF4 module is not in this base.
    """

    def __init__(self, folder: Path, recipe: MergeRecipe, needed: Iterable[str] = ()) -> None:
        self.folder = folder
        self.recipe = recipe
        self._files = open_weights(folder, {*needed, *(f"{name}.weight" for name in recipe.quantized_modules or ())})
        self.config = read_object(folder / "config.json")
        packed = {m["tensor"]: m[0] for m in map(_PACKED_STATE.fullmatch, self._files.infos) if m}
        _refuse_quantized_base(folder, self.config, bool(packed), recipe)
        self._packed = {name: self._packed_parts(name, state) for name, state in packed.items()}
        parts = {part for parts in self._packed.values() for part in parts}
        self.shards = {
            shard: [self._output_info(info) for info in infos if info.name not in parts]
            for shard, infos in self._files.shards.items()
        }
        self.infos = {info.name: info for infos in self.shards.values() for info in infos}
        self.quantized = self.held_in_4bit() if recipe.merge_base == "dequant4" else frozenset()
        self._held = threading.local()

    def stored_name(self, name: str) -> str:
        """Name in the files of a tensor, or of a part of it in 4 bits."""
        return self._files.stored_name(name)

    @property
    def indexed(self) -> bool:
        """True when the base has an index file."""
        return self._files.indexed

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors to be written."""
        return sum(info.nbytes for info in self.infos.values())

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a tensor as the recipe wants it, in the dtype it was held in.

        A tensor that goes through NF4 is packed whole, and kept by this thread until it asks for another one.
        """
        if name not in self.quantized:
            return self._files.rows(name, start, stop)
        if getattr(self._held, "name", None) != name:
            self._held.weight = None  # let go of the previous one first
            self._held.weight = self._stored(name) if name in self._packed else self._round_trip(name)
            self._held.name = name
        weight: PackedWeight = self._held.weight
        return weight.rows(start, stop)

    def held_in_4bit(self) -> frozenset[str]:
        """Names of the tensors that training held in NF4.

        Raises:
            IntegrityError: a recorded module is not in this base.
        """
        if self.recipe.quantized_modules is None:
            blocks = (n for n, i in self.infos.items() if len(i.shape) == 2 and _BLOCK_WEIGHT.fullmatch(n))
            return frozenset(self._packed or blocks)
        names = frozenset(f"{module}.weight" for module in self.recipe.quantized_modules)
        strange = sorted(names - self.infos.keys())
        if strange:
            raise IntegrityError(
                f"{self.folder}: {len(strange)} weights that training held in 4 bits are not in this base "
                f"(first {strange[0]}); name the base that was trained on"
            )
        return names | self._packed.keys()

    def _round_trip(self, name: str) -> PackedWeight:
        """NF4(W16) exactly as bitsandbytes' Linear4bit holds it."""
        info = self._files.infos[name]
        dtype = self.recipe.trained_dtype or info.dtype
        blocks = (self._files.rows(name, start, stop).to(dtype) for start, stop in info.blocks())
        return PackedWeight.pack(blocks, TensorInfo(name, dtype, info.shape))

    def _stored(self, name: str) -> PackedWeight:
        """A weight that the base stores in 4 bits."""
        parts = {part.removeprefix(f"{name}."): self._files.tensor(part) for part in self._packed[name]}
        return PackedWeight.from_parts({"": self._files.tensor(name), **parts}, self.recipe.trained_dtype)

    def _packed_parts(self, name: str, state: str) -> list[str]:
        """Names of the tensors that together with `name` make one 4-bit weight."""
        parts = [part for part in self._files.infos if part.startswith(f"{name}.")]
        if name not in self._files.infos or state not in parts or f"{name}.absmax" not in parts:
            raise IntegrityError(f"{self.folder}: parts of the 4-bit weight {name} are missing; download it again")
        return parts

    def _output_info(self, info: TensorInfo) -> TensorInfo:
        """What `info` becomes in the merged checkpoint."""
        dtype, shape = info.dtype, info.shape
        if info.name in self._packed:
            dtype, shape = self._packed_form(info.name)
        if self.recipe.dtype is not None and dtype.is_floating_point:
            dtype = self.recipe.dtype
        return TensorInfo(info.name, dtype, shape)

    def _packed_form(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Dtype and shape of a 4-bit weight once it is dense, from its stored state."""
        from bitsandbytes.utils import unpack_tensor_to_dict

        (state,) = (part for part in self._packed[name] if _PACKED_STATE.fullmatch(part))
        said = unpack_tensor_to_dict(self._files.tensor(state))
        shape = tuple(said["shape"])
        if math.prod(shape) > 2 * self._files.infos[name].nbytes:
            raise IntegrityError(f"{self.folder}: {name} holds fewer values than its shape {shape}; download it again")
        return getattr(torch, said["dtype"]), shape


def _refuse_quantized_base(folder: Path, config: dict[str, object], packed: bool, recipe: MergeRecipe) -> None:
    """Raise ConfigError for a base whose stored weights cannot serve this recipe."""
    stored = few_bits_of(config)
    if stored and not stored.trains:
        raise ConfigError(
            f"{folder}: its weights are quantised ({stored.form}) in a form that cannot be merged into; "
            "name the same model in 16 bits as model.base_16bit"
        )
    if not packed:
        return
    if recipe.merge_base == "original16":
        instead = "" if recipe.nf4 else ", or choose export.merge_base: dequant4"
        raise ConfigError(
            f"{folder}: its weights are stored in 4 bits, and export.merge_base: original16 needs the original "
            f"16-bit ones; name them as model.base_16bit{instead}"
        )
