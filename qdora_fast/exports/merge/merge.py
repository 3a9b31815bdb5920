"""Merge an adapter into its base, shard by shard, without loading a model.

`merged_model.py` computes each tensor in blocks of rows as it is written. Everything that has no
adapter is copied bit by bit, the shards keep their names and order, and the folder appears only
when it is complete; an interrupted merge is resumed from its finished shards (`shards.py`). That the
result is the model that was trained is shown by `weights.py`, not assumed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from qdora_fast import __version__
from qdora_fast.exports.merge.base import MergeRecipe
from qdora_fast.exports.merge.merged_model import MergedModel
from qdora_fast.exports.merge.shards import close_ledger, write_shards
from qdora_fast.exports.merge.sidecars import copy_sidecars, has_tokenizer, output_config
from qdora_fast.models.adapter import CONFIG_NAME, WEIGHTS_NAME
from qdora_fast.models.nf4 import quantization_config
from qdora_fast.models.weights import write_index
from qdora_fast.system.atomic import publish, refuse_existing
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.manifest import sha256_of
from qdora_fast.system.paths import refuse_links_out

WORKERS = 2
"""Shards written at a time."""


@dataclass(frozen=True)
class MergeReport:
    """What a merge did with every tensor and file."""

    out: Path
    merge_base: str
    merged: int
    """Layers with an adapter, merged."""
    replaced: int
    """Tensors that are the adapter's own (`modules_to_save`)."""
    tokens: int
    """Tensors in which rows of tokens are the adapter's own (`trainable_token_indices`)."""
    round_tripped: int
    """Tensors without an adapter that now carry the 4-bit rounding training saw (dequant4)."""
    copied: int
    """Tensors that are the base's, bit for bit unless the recipe changes the dtype."""
    packed: int
    """Weights written in NF4."""
    bytes: int
    """Size of all tensors written."""
    sha256: dict[str, str]
    """Weight file -> digest."""
    resumed: int
    """Shards that an interrupted merge had finished."""
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
    workers: int = WORKERS,
    on_bytes: Callable[[int], None] | None = None,
) -> MergeReport:
    """Write `out` = base with the adapter merged in, loadable by any reader of Transformers checkpoints.

    Args:
        base: folder of the base model (safetensors).
        adapter: folder of a PEFT LoRA or DoRA adapter.
        out: new folder; built as `<out>.incomplete` and renamed at the end.
        recipe: which base weights, which dtype, 4 bits or not; the original ones, as they are, by default.
        tokenizer_from: folder whose tokenizer and chat template go along, if it has them; else the base's.
        overwrite: replace an existing `out`.
        workers: shards written at a time.
        on_bytes: told the size of every block written (`MergedModel.total_bytes` says how many there will be).

    Raises:
        ConfigError: `out` exists, base or adapter are of a kind that cannot be merged, or a link leads out of them.
        IntegrityError: damaged files, or an adapter that was not trained on this base.
        DiskSpaceError: not enough room where `out` will be.
    """
    refuse_existing(out, overwrite=overwrite)
    refuse_own_sources(out, base, adapter, tokenizer_from)
    staging = out.with_name(f"{out.name}.incomplete")
    model = MergedModel(base, adapter, recipe or MergeRecipe())
    report = build(model, staging, tokenizer_from=tokenizer_from, workers=workers, on_bytes=on_bytes)
    close_ledger(staging)
    publish(staging, out)
    return report


def build(
    model: MergedModel,
    folder: Path,
    *,
    tokenizer_from: Path | None = None,
    workers: int = WORKERS,
    on_bytes: Callable[[int], None] | None = None,
) -> MergeReport:
    """Write a merged model into a folder that is not in its place yet.

    What an interruption left there is used, everything else removed. The caller closes the folder's ledger
    (`shards.close_ledger`) once nothing is to be taken from it any more.
    """
    weights, update = model.weights, model.update
    for source in filter(None, (weights.folder, tokenizer_from)):
        refuse_links_out(source)
    named = {weights.stored_name(info.name): info for infos in model.shards.values() for info in infos}
    shards = {
        shard: [replace(info, name=weights.stored_name(info.name)) for info in infos]
        for shard, infos in model.shards.items()
    }
    digests, resumed = write_shards(
        folder,
        shards,
        lambda info: model.stored(named[info.name]),
        work=_work(model),
        workers=workers,
        on_bytes=on_bytes,
    )
    if weights.indexed:
        shard_of = {info.name: shard for shard, infos in shards.items() for info in infos}
        write_index(folder, shard_of, model.total_bytes)
    files = copy_sidecars(weights.folder, merged_config(model), tokenizer_from, folder)
    merged = {f"{name}.weight" for name in update.modules}
    touched = merged | update.saved_modules.keys() | model.tokens.keys() | weights.quantized | model.packed
    return MergeReport(
        out=folder,
        merge_base=weights.recipe.merge_base,
        merged=len(merged),
        replaced=len(update.saved_modules),
        tokens=len(model.tokens),
        round_tripped=len(weights.quantized - merged - update.saved_modules.keys()),
        copied=len(weights.infos.keys() - touched),
        packed=len(model.packed),
        bytes=model.total_bytes,
        sha256=digests,
        resumed=len(resumed),
        files=files,
        has_tokenizer=has_tokenizer(folder),
    )


def merged_config(model: MergedModel) -> dict[str, object]:
    """config.json of the merged model."""
    recipe, infos = model.weights.recipe, model.infos
    quantization = None
    if recipe.nf4:
        dense = {name for name, info in infos.items() if len(info.shape) == 2} - model.packed
        skipped = {_skipped(name, model.packed) for name in dense} | {"lm_head"}  # a tied head is not in the files
        (dtype,) = {infos[name].dtype for name in model.packed}
        quantization = quantization_config(dtype, skipped)
    config = _with_vocabulary(model.weights.config, model)
    return dict(output_config(config, recipe.dtype and str(recipe.dtype).removeprefix("torch."), quantization))


def _skipped(name: str, packed: Collection[str]) -> str:
    """What names a dense weight's module: the stack of blocks it lies in, where nothing there is packed (a tower's)."""
    module = name.removesuffix(".weight")
    stack = re.split(r"\.\d+\.", module, maxsplit=1)[0]
    return module if any(each.startswith(f"{stack}.") for each in packed) else stack


def _with_vocabulary(config: Mapping[str, Any], model: MergedModel) -> dict[str, Any]:
    """The base's config with the rows that its embeddings have now, where tokens were added."""
    rows = {model.infos[name].shape[0] for name in model.tokens}
    if rows <= {model.weights.infos[name].shape[0] for name in model.tokens}:
        return dict(config)
    changed: dict[str, Any] = {"vocab_size": max(rows)} if "vocab_size" in config else {}
    if isinstance(config.get("text_config"), dict):
        changed["text_config"] = _with_vocabulary(config["text_config"], model)
    return {**config, **changed}


def _work(model: MergedModel) -> str:
    """Fingerprint of all that the shards depend on. A base is known by its files' names, sizes and times."""
    base, adapter = model.weights.folder, model.update.folder
    stats = {file.name: file.stat() for file in sorted(base.iterdir()) if file.suffix in (".safetensors", ".json")}
    facts = {
        "base": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
        "adapter": [sha256_of(adapter / name) for name in (CONFIG_NAME, WEIGHTS_NAME)],
        "recipe": asdict(model.weights.recipe),
        "versions": [__version__, torch.__version__],
        "arithmetic": torch.backends.cpu.get_cpu_capability(),  # other processors round sums differently
    }
    text = json.dumps(facts, default=lambda value: sorted(value) if isinstance(value, frozenset) else str(value))
    return hashlib.sha256(text.encode()).hexdigest()


def refuse_own_sources(out: Path, *sources: Path | None) -> None:
    """Raise ConfigError when writing `out` would replace a folder that is being read."""
    for source in sources:
        if source is not None and source.resolve().is_relative_to(out.resolve()):
            raise ConfigError(f"{out}: holds {source}, which is an input of this merge; name another output folder")
