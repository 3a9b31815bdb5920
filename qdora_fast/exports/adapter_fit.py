"""Does an adapter belong to a base? Asked of the base's config.json, and of its weights' headers where they are here.

PEFT would let the differences pass: layers that the file lacks are left as they are, tensors for layers that the base
does not have are dropped, each with a warning. No weight is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qdora_fast.config import AdapterSettings, ModelSettings
from qdora_fast.models.adapter import CONFIG_NAME, Adapter
from qdora_fast.models.few_bits import few_bits_in
from qdora_fast.models.loading import read_architecture
from qdora_fast.models.targets import choose_targets, lies_in
from qdora_fast.system.errors import IntegrityError, RefusedError


@dataclass(frozen=True)
class Fit:
    """What is known of the base without its weights."""

    linears: tuple[str, ...]
    """Linear layers of its blocks, in order."""
    elsewhere: tuple[str, ...]
    """Those outside the blocks and the output head, without the parts beside the language model."""
    shapes_compared: bool
    """Its weights are on this machine, and every shape was compared."""


def fit(adapter: Adapter, base: str, model: ModelSettings, settings: AdapterSettings, *, merge_base: str) -> Fit:
    """Compare names and, where the base's weights are on this machine, shapes.

    Args:
        base: hub id or folder, see `recipes.data.find_base`.
        settings: what the run's config says of the adapter.
        merge_base: `export.merge_base`.

    Raises:
        IntegrityError: layers are missing from the adapter or from the base, or have other shapes.
        ConfigError, RefusedError: see `loading.check_base`; or it trained a vision tower.
    """
    architecture = read_architecture(base, model, settings, merge_base=merge_base)
    choose_targets(architecture, settings)  # refuses
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    asked = LoraConfig.from_pretrained(str(adapter.folder))
    wanted = [layer for layer in architecture.linears if check_target_module_exists(asked, layer)]
    _refuse_towers(adapter, architecture.beside)
    missing = [f"{layer}: named in {CONFIG_NAME}, not in the file" for layer in wanted if layer not in adapter.modules]
    strange = [f"{layer}: not in the base" for layer in adapter.modules if layer not in architecture.linears]
    if missing or strange:
        listed = "\n  ".join([*missing, *strange][:5])
        raise IntegrityError(
            f"{adapter.folder} does not fit `{base}`: {len(missing)} layers are missing, {len(strange)} are not the "
            f"base's; name the base that was trained on by --base, or save the adapter once more:\n  {listed}"
        )
    elsewhere = tuple(name for name in architecture.elsewhere if not lies_in(name, architecture.beside))
    return Fit(architecture.linears, elsewhere, _compare_shapes(adapter, base, model))


def _refuse_towers(adapter: Adapter, beside: Sequence[str]) -> None:
    """Raise RefusedError for layers of a tower or projector: the proof of an export runs rows of text."""
    inside = [layer for layer in adapter.modules if lies_in(layer, beside)]
    if inside:
        raise RefusedError(
            f"{adapter.folder}: {len(inside)} of its layers are not the language model's (first {inside[0]}), and "
            "text alone is trained and proven here; merge it with PEFT (`merge_and_unload`), or train without them "
            "(Unsloth: finetune_vision_layers=False)"
        )


def _compare_shapes(adapter: Adapter, base: str, model: ModelSettings) -> bool:
    """Compare with the headers of the base's weights; False where they are not on this machine."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from qdora_fast.exports.merge.base import BaseWeights, MergeRecipe
    from qdora_fast.exports.merge.merged_model import check_fit

    source = model.base_16bit or base
    if not Path(source).is_dir():
        try:
            source = snapshot_download(source, revision=model.revision, local_files_only=True)
        except (LocalEntryNotFoundError, ValueError):
            return False
    if not list(Path(source).glob("*.safetensors")):
        return False  # the hub's cache holds its config and tokenizer alone
    packed = few_bits_in(Path(source)) is not None
    recipe = MergeRecipe(merge_base="dequant4" if packed else "original16")
    check_fit(BaseWeights(Path(source), recipe, adapter.tensors), adapter)
    return True
