"""A base with an adapter merged in, as a table of tensors that are computed when they are read.

For every adapted linear layer, with D = scaling · B·A:

    LoRA   W' = W + D
    DoRA   W' = m · (W + D) / ‖W + D‖        norm per output row (DoRA paper, equation 5)

Rows of trained tokens stand in the place of the base's, in the embeddings and in the head; tokens that the base has no
row for are appended.

The norm is per row, so a block of rows merges exactly and on its own. That is the whole trick:
memory is bounded by the block and the adapter, never by the model; no GPU, no model class. The
arithmetic is fp32, rounded once to the dtype of the base, and packed into NF4 from there where the
recipe asks for it (`nf4.py`). What this gives up: it knows linear layers only (`adapter.py` refuses
the rest), and a base in which the modules that were trained are not found is refused, not guessed at.
All names are those of the model's modules; see `base.py`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from qdora_fast.exports.merge.base import BaseWeights, MergeRecipe
from qdora_fast.models.adapter import Adapter, AdapterModule, TokenRows, read_adapter
from qdora_fast.models.model_config import text_section
from qdora_fast.models.nf4 import PackedWeight, stored_infos
from qdora_fast.models.weights import TensorInfo, one_thread, widest_first
from qdora_fast.system.errors import ConfigError, IntegrityError


class MergedModel:
    """A base with an adapter merged in, computed by rows as it is asked for.

    Attributes:
        weights: the base.
        update: the adapter.
        packed: names of the weights that are stored in NF4.
        tokens: trained rows by the tensor's name; those of the embeddings also for a tied head that has a copy.
        infos: every tensor of the merged model, dense: the base's, with a row for each new token.
        shards: file name -> the tensors that store the model, in file order.

    Raises:
        ConfigError, IntegrityError: see `merge`.
    """

    def __init__(self, base: Path, adapter: Path, recipe: MergeRecipe) -> None:
        self.update = read_adapter(adapter)
        self.weights = BaseWeights(base, recipe, self.update.tensors)
        check_fit(self.weights, self.update)
        self.tokens = _with_tied_head(self.weights, self.update)
        self.infos = {name: self._grown(info) for name, info in self.weights.infos.items()}
        self.packed = (self._to_pack() if recipe.nf4 else frozenset[str]()) - self.update.saved_modules.keys()
        self.shards = {
            shard: self._file_order([self.infos[info.name] for info in infos])
            for shard, infos in self.weights.shards.items()
        }
        self._part_of = {
            part.name: (name, part.name.removeprefix(name).removeprefix("."))
            for name in self.packed
            for part in stored_infos(self.infos[name])
        }
        self._held = threading.local()

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors that store the model."""
        return sum(info.nbytes for infos in self.shards.values() for info in infos)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of one merged tensor, dense, in the dtype of `infos`.

        Raises:
            IntegrityError: values that are not finite.
        """
        info = self.infos[name]
        module = self.update.modules.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if name in self.update.saved_modules:
            block = self.update.saved_rows(name, start, stop)
        elif name in self.tokens:
            block = self.tokens[name].put(self.held_rows(name, start, stop), start)
        elif module is None:
            block = self.weights.rows(name, start, stop)
        else:
            with one_thread():
                block = merged_rows(self.weights.rows(name, start, stop).to(torch.float32), module, start)
        changed = module is not None or block.dtype != info.dtype
        block = block.to(info.dtype)
        if changed and not _all_finite(block):
            raise IntegrityError(
                f"{name}: NaN or infinity after merging (rows {start}-{stop - 1}, written as {info.dtype}); "
                "the base holds such values, or they do not fit this type: use bfloat16 or float32"
            )
        return block

    def held_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the base's tensor; zeros for tokens that it has no row for."""
        height = self.weights.infos[name].shape[0]
        if stop <= height:
            return self.weights.rows(name, start, stop)
        width = self.infos[name].shape[1]
        new = torch.zeros(stop - max(start, height), width, dtype=self.infos[name].dtype)
        return torch.cat([self.weights.rows(name, start, height), new]) if start < height else new

    def packed_weight(self, name: str) -> PackedWeight:
        """One merged tensor in NF4."""
        info = self.infos[name]
        return PackedWeight.pack((self.rows(name, start, stop) for start, stop in info.blocks()), info)

    def stored(self, info: TensorInfo) -> Iterator[Tensor]:
        """The rows of one of `shards`' tensors, in order. The parts of an NF4 weight are made at the first of them."""
        if info.name not in self._part_of:
            yield from (self.rows(info.name, start, stop) for start, stop in info.blocks())
            return
        name, part = self._part_of[info.name]
        if getattr(self._held, "name", None) != name:
            self._held.parts = None  # let go of the previous one first
            self._held.parts, self._held.name = self.packed_weight(name).parts(), name
        yield self._held.parts[part]

    def _to_pack(self) -> frozenset[str]:
        """What training held in 4 bits; after training on 16 bits, what lies in the blocks that were adapted."""
        held = self.weights.held_in_4bit()
        if self.weights.recipe.quantized_modules is not None:
            return held
        stacks = tuple({re.split(r"(?<=\.)\d+\.", name, maxsplit=1)[0] for name in self.update.modules})
        return frozenset(name for name in held if name.startswith(stacks))

    def _grown(self, info: TensorInfo) -> TensorInfo:
        """A tensor with a row for each token that was trained on it."""
        if info.name not in self.tokens or self.update.vocabulary <= info.shape[0]:
            return info
        return TensorInfo(info.name, info.dtype, (self.update.vocabulary, *info.shape[1:]))

    def _file_order(self, infos: list[TensorInfo]) -> list[TensorInfo]:
        """Wider dtypes first; NF4 weights, whose parts must follow each other, where four bytes are aligned."""
        plain = widest_first(info for info in infos if info.name not in self.packed)
        wide = [info for info in plain if info.dtype.itemsize >= 8]
        parts = [part for info in infos if info.name in self.packed for part in stored_infos(info)]
        return [*wide, *parts, *plain[len(wide) :]]


def merged_rows(weight: Tensor, module: AdapterModule, start: int) -> Tensor:
    """Merge one block of rows, in fp32.

    Args:
        weight: W[start : start + n], shape [n, in], fp32.
        module: the layer's A [r, in], B [out, r], m [out] and scale.
        start: first row of the block.

    Returns:
        [n, in], fp32. A DoRA row whose W + D is entirely zero stays zero.
    """
    rows = slice(start, start + len(weight))
    updated = torch.addmm(weight, module.lora_b[rows], module.lora_a, alpha=module.scaling)  # [n, r] @ [r, in]
    if module.magnitude is None:
        return updated
    norm = torch.linalg.vector_norm(updated, dim=1)  # [n]
    gain = torch.where(norm > 0, module.magnitude[rows] / norm, 1.0)
    return updated.mul_(gain[:, None])


def check_fit(weights: BaseWeights, update: Adapter) -> None:
    """Check that every tensor of the adapter has its place in the base.

    Raises:
        ConfigError: something was trained that shares its weights with something else (tied embeddings).
        IntegrityError: an adapted layer is not in the base or has another shape.
    """
    _refuse_tied(weights, update)
    problems = []
    wanted: dict[str, tuple[int, ...]] = {
        f"{name}.weight": (module.lora_b.shape[0], module.lora_a.shape[1]) for name, module in update.modules.items()
    }
    for name, tokens in update.tokens.items():
        problems += _token_problems(name, tokens, weights.infos.get(name))
    for name, shape in {**wanted, **update.saved_modules}.items():
        info = weights.infos.get(name)
        if info is None:
            problems.append(f"{name}: trained, but the base has no such tensor")
        elif info.shape != shape:
            problems.append(f"{name}: trained with shape {shape}, but the base has {info.shape}")
        elif not info.dtype.is_floating_point:
            problems.append(f"{name}: stored as {info.dtype} in the base, which holds no plain weights")
    if problems:
        listed = "\n  ".join(problems[:5])
        raise IntegrityError(
            f"{update.folder} does not fit {weights.folder} ({len(problems)} tensors); "
            f"name the base that was trained on:\n  {listed}"
        )


def _token_problems(name: str, tokens: TokenRows, info: TensorInfo | None) -> list[str]:
    """Why rows of tokens have no place in a base's tensor; its new rows must all be among them."""
    if info is None:
        return [f"{name}: tokens were trained, but the base has no such tensor"]
    if tokens.rows.shape[1:] != info.shape[1:]:
        return [f"{name}: rows of {tokens.rows.shape[1]} values were trained, but the base has {info.shape}"]
    untrained = [number for number in range(info.shape[0], max(tokens.ids) + 1) if number not in tokens.ids]
    return [f"{name}: row {untrained[0]} was not trained, and the base has {info.shape[0]} rows"] if untrained else []


def _with_tied_head(weights: BaseWeights, update: Adapter) -> dict[str, TokenRows]:
    """Trained rows by tensor: where the head shares the embeddings' weights and yet lies in the files, it has them."""
    tied, head = _says_tied(weights), "lm_head.weight"
    if tied is True and head in weights.infos and len(update.tokens) == 1:
        return update.tokens | dict.fromkeys([head], next(iter(update.tokens.values())))
    return update.tokens


def _says_tied(weights: BaseWeights) -> bool | None:
    """Whether config.json says that head and embeddings are one tensor; of a vision model for the whole or its text."""
    values = (weights.config, text_section(weights.config))
    said = next((each["tie_word_embeddings"] for each in values if each.get("tie_word_embeddings") is not None), None)
    return said if isinstance(said, bool) else None


def _all_finite(block: Tensor) -> bool:
    """A sum is finite only if all its values are, and takes a twentieth of the time of looking at each."""
    return bool(block.sum(dtype=torch.float32).isfinite()) or bool(block.isfinite().all())


def _refuse_tied(weights: BaseWeights, update: Adapter) -> None:
    """Raise ConfigError when an output head or embedding was trained that shares its weights with the other."""
    setting = _says_tied(weights)
    tied = setting is True or (setting is None and "lm_head.weight" not in weights.infos)
    trained = [*update.saved_modules, *(f"{name}.weight" for name in update.modules)]
    shared = [name for name in trained if name == "lm_head.weight" or name.endswith("embed_tokens.weight")]
    if tied and shared:
        raise ConfigError(
            f"{update.folder}: {shared[0]} was trained, but in this base the output head and the embeddings are one "
            "tensor, and training has parted them; merge with PEFT (`merge_and_unload`), or train without it"
        )
