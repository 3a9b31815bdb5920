"""Merge an adapter into its base, shard by shard, without loading a model.

For every adapted linear layer, with D = scaling · B·A:

    LoRA   W' = W + D
    DoRA   W' = m · (W + D) / ‖W + D‖        norm per output row (DoRA paper, equation 5)

The norm is per row, so a block of rows merges exactly and on its own. That is the whole trick:
memory is bounded by the block and the adapter, never by the model; no GPU, no model class. The
arithmetic is fp32, rounded once to the dtype of the base. Everything else of the checkpoint is
copied bit by bit, the shards keep their names and order, and the folder appears only when it is
complete. What this gives up: it knows linear layers only (`adapter.py` refuses the rest), and a
base whose tensors are not named like the modules that were trained is refused, not guessed at.
That the result is the model that was trained is shown by `proof.py`, not assumed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdora_fast.adapter import Adapter, AdapterModule, read_adapter
from qdora_fast.base_weights import BaseWeights, MergeRecipe
from qdora_fast.contained import refuse_links_out
from qdora_fast.errors import ConfigError, IntegrityError
from qdora_fast.remote_code import remote_code_allowed
from qdora_fast.staging import refuse_existing, require_space, staged_folder
from qdora_fast.weights import TensorInfo, write_index, write_shard

_MODEL_FILES = ("generation_config.json", "LICEN[CS]E*", "NOTICE*", "COPYING*", "USE_POLICY*")
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "spiece.model",
    "sentencepiece*.model",
    "tekken.json",
    "chat_template.*",
    "*processor_config.json",
)


@dataclass(frozen=True)
class MergeReport:
    """What a merge did with every tensor and file."""

    out: Path
    merge_base: str
    merged: int
    """Layers with an adapter, merged."""
    replaced: int
    """Tensors taken from the adapter whole (`modules_to_save`)."""
    round_tripped: int
    """Tensors without an adapter that now carry the 4-bit rounding training saw (dequant4)."""
    copied: int
    """Tensors that are the base's, bit for bit unless the recipe changes the dtype."""
    bytes: int
    """Size of all tensors."""
    sha256: dict[str, str]
    """Weight file -> digest."""
    files: dict[str, str]
    """Other file -> the folder it came from."""
    has_tokenizer: bool
    """False when neither the base nor `tokenizer_from` had one: the export cannot be served as it is."""


def merge(
    base: Path,
    adapter: Path,
    out: Path,
    recipe: MergeRecipe | None = None,
    *,
    tokenizer_from: Path | None = None,
    overwrite: bool = False,
    on_bytes: Callable[[int], None] | None = None,
) -> MergeReport:
    """Write `out` = base with the adapter merged in, loadable by any reader of Transformers checkpoints.

    Args:
        base: folder of the base model (safetensors).
        adapter: folder of a PEFT LoRA or DoRA adapter.
        out: new folder; built as `<out>.incomplete` and renamed at the end.
        recipe: which base weights and which dtype; the original ones, as they are, by default.
        tokenizer_from: folder whose tokenizer and chat template go along, if it has them; else the base's.
        overwrite: replace an existing `out`.
        on_bytes: told the size of every block written (`merged_bytes` says how many there will be).

    Raises:
        ConfigError: `out` exists, base or adapter are of a kind that cannot be merged, or a link leads out of them.
        IntegrityError: damaged files, or an adapter that was not trained on this base.
        DiskSpaceError: not enough room where `out` will be.
    """
    recipe = recipe or MergeRecipe()
    refuse_existing(out, overwrite=overwrite)
    _refuse_own_sources(out, base, adapter, tokenizer_from)
    for folder in filter(None, (base, tokenizer_from)):
        refuse_links_out(folder)
    weights = BaseWeights(base, recipe)
    update = read_adapter(adapter)
    check_fit(weights, update)
    require_space(out, weights.total_bytes)
    with staged_folder(out, overwrite=overwrite) as staging:
        digests = {
            shard: write_shard(staging / shard, infos, lambda info: _blocks(info, weights, update), on_bytes)
            for shard, infos in weights.shards.items()
        }
        if weights.indexed:
            shard_of = {info.name: shard for shard, infos in weights.shards.items() for info in infos}
            write_index(staging, shard_of, weights.total_bytes)
        files = _copy_companions(weights, tokenizer_from, staging)
        has_tokenizer = bool(_matching(staging, _TOKENIZER_FILES))
    merged = {f"{name}.weight" for name in update.modules}
    touched = merged | update.saved_modules.keys() | weights.quantized
    return MergeReport(
        out=out,
        merge_base=recipe.merge_base,
        merged=len(merged),
        replaced=len(update.saved_modules),
        round_tripped=len(weights.quantized - merged - update.saved_modules.keys()),
        copied=len(weights.infos.keys() - touched),
        bytes=weights.total_bytes,
        sha256=digests,
        files=files,
        has_tokenizer=has_tokenizer,
    )


def merged_bytes(base: Path, recipe: MergeRecipe | None = None) -> int:
    """How many bytes of tensors a merge into this base writes: the total of a progress bar."""
    return BaseWeights(base, recipe or MergeRecipe()).total_bytes


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


def _blocks(info: TensorInfo, weights: BaseWeights, update: Adapter) -> Iterator[Tensor]:
    """The rows of one tensor of the merged model, in order and in the dtype to be written."""
    module = update.modules.get(info.name.removesuffix(".weight")) if info.name.endswith(".weight") else None
    for start, stop in info.blocks():
        if info.name in update.saved_modules:
            block = update.saved_rows(info.name, start, stop)
        elif module is None:
            block = weights.rows(info.name, start, stop)
        else:
            block = merged_rows(weights.rows(info.name, start, stop).to(torch.float32), module, start)
        changed = module is not None or block.dtype != info.dtype
        block = block.to(info.dtype)
        if changed and not bool(block.isfinite().all()):
            raise IntegrityError(
                f"{info.name}: NaN or infinity after merging (rows {start}-{stop - 1}, written as {info.dtype}); "
                "the base holds such values, or they do not fit this type: use bfloat16 or float32"
            )
        yield block


def _refuse_tied(weights: BaseWeights, update: Adapter) -> None:
    """Raise ConfigError when an output head or embedding was trained that shares its weights with the other."""
    said = weights.config.get("tie_word_embeddings")
    tied = said is True or (said is None and "lm_head.weight" not in weights.infos)
    trained = [*update.saved_modules, *(f"{name}.weight" for name in update.modules)]
    shared = [name for name in trained if name == "lm_head.weight" or name.endswith("embed_tokens.weight")]
    if tied and shared:
        raise ConfigError(
            f"{update.folder}: {shared[0]} was trained, but in this base the output head and the embeddings are one "
            "tensor, and training has parted them; merge with PEFT (`merge_and_unload`), or train without it"
        )


def _refuse_own_sources(out: Path, *sources: Path | None) -> None:
    """Raise ConfigError when writing `out` would replace a folder that is being read."""
    for source in sources:
        if source is not None and source.resolve().is_relative_to(out.resolve()):
            raise ConfigError(f"{out}: holds {source}, which is an input of this merge; name another output folder")


def _copy_companions(weights: BaseWeights, tokenizer_from: Path | None, staging: Path) -> dict[str, str]:
    """Write config.json and copy the small files a model needs; return where each came from."""
    base = weights.folder
    (staging / "config.json").write_text(
        json.dumps(_dense_config(weights.config, weights.recipe.dtype), indent=2) + "\n", encoding="utf-8"
    )
    own_code = ("*.py",) if "auto_map" in weights.config and remote_code_allowed() else ()
    has_own = tokenizer_from is not None and bool(_matching(tokenizer_from, ("tokenizer*",)))
    tokenizer = tokenizer_from if tokenizer_from is not None and has_own else base
    sources = {file.name: file for file in _matching(base, (*_MODEL_FILES, *own_code))}
    sources |= {file.name: file for file in _matching(tokenizer, _TOKENIZER_FILES)}
    for name, file in sources.items():
        shutil.copyfile(file, staging / name)
    return {"config.json": str(base)} | {name: str(file.parent) for name, file in sorted(sources.items())}


def _dense_config(config: dict[str, Any], dtype: torch.dtype | None) -> dict[str, Any]:
    """The base's config with the dtype that was written, without its quantisation and without code that did not run."""
    unused = {"quantization_config"} if remote_code_allowed() else {"quantization_config", "auto_map"}
    dense = {key: value for key, value in config.items() if key not in unused}
    if isinstance(dense.get("text_config"), dict):
        dense["text_config"] = _dense_config(dense["text_config"], dtype)
    if dtype is not None:
        known = [key for key in ("dtype", "torch_dtype") if key in dense] or ["dtype"]
        dense |= dict.fromkeys(known, str(dtype).removeprefix("torch."))
    return dense


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Files directly in `folder` that match any of the patterns."""
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
