"""Bases that are published in few bits: how that is told, what can be done with them, and what to name in their place.

One form can be trained on and merged into: bitsandbytes' 4 bits (NF4 and FP4), also mixed ones that leave layers in
16 bits. All others (FP8, MXFP4, NVFP4, 8 bits of bitsandbytes, GPTQ, AWQ, ...) are refused by their name before a
weight is read, with the 16-bit model that they were made from where it can be known: by the model card in the folder,
by the name, or by what is published. Nothing is guessed: where it cannot be known, no name is given.

A checkpoint may be in few bits and not say so (a `quantization_config` that was taken out): `base_files.py` looks at
the types of its tensors.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdora_fast.config import AdapterSettings, ModelSettings
from qdora_fast.models.model_config import read_model_config, text_section
from qdora_fast.system.errors import ConfigError, RefusedError
from qdora_fast.system.json_files import read_object

PUBLISHERS = frozenset(
    {"unsloth", "meta-llama", "mistralai", "qwen", "google", "microsoft", "openai", "ibm-granite", "huggingfacetb"}
    | {"tinyllama", "allenai", "zai-org", "lgai-exaone", "deepseek-ai", "liquidai", "tiiuae"}
)
"""Owners on the hub, in lower case, who publish a model in 16 bits and in few under one name and an ending."""

_PUBLISHED_TWINS = {
    "mistralai/ministral-3-3b-instruct-2512": "mistralai/Ministral-3-3B-Instruct-2512-BF16",
    "mistralai/ministral-3-8b-instruct-2512": "mistralai/Ministral-3-8B-Instruct-2512-BF16",
    "mistralai/ministral-3-14b-instruct-2512": "mistralai/Ministral-3-14B-Instruct-2512-BF16",
    "openai/gpt-oss-20b": "unsloth/gpt-oss-20b-BF16",
}
"""Models whose own name is that of weights in few bits (FP8, MXFP4), and their twins as public repositories load them;
not looked up on the hub."""

_KINDS = (
    *("bnb", "fp8", "mxfp[48]", "nvfp4", "fp4", "nf4", "gptq", "awq", "aqlm", "hqq", "eetq", "vptq", "spqr", "higgs"),
    *("quanto", "torchao", "bitnet", "autoround", "auto-round", "exl[23]", "gguf", "mlx"),
    *("int[2-8]", "[2-8]-?bits?", r"(?:quantized\.)?w[2-8]a(?:4|8|16)"),
)
_DETAILS = (
    "dynamic",
    "static",
    "block",
    "channel",
    "kv",
    "sym",
    "asym",
    "marlin",
    r"g\d+",
    r"gs\d+",
    r"[0-9.]+bpw",
    "hf",
)
_ENDING = re.compile(
    rf"[-_.](?:unsloth-)?(?:{'|'.join(_KINDS)})(?:[-_.](?:{'|'.join(_KINDS + _DETAILS)}))*$", re.IGNORECASE
)
"""What names of such checkpoints end in: -FP8, -unsloth-bnb-4bit, -GPTQ-Int4, -FP8-dynamic, ..."""
_SAID_IN = (
    "format",
    "quant_algo",
    "fmt",
    "bits",
    "num_bits",
    "w_bit",
    "nbits",
    "weights_dtype",
    "weights",
    "quant_type",
)


@dataclass(frozen=True)
class FewBits:
    """The form in which a checkpoint stores its weights."""

    form: str
    """In words: NF4 of bitsandbytes, gptq (4 bits), ..."""
    trains: bool
    """It can be trained on and, as `dequant4`, merged into."""
    left_out: tuple[str, ...]
    """Patterns of the layers that it leaves in 16 bits, as Transformers reads them."""
    nested: bool = True
    """Its scales are quantised as well (double quantisation)."""

    def keeps_16bit(self, module: str) -> bool:
        """Whether a linear layer is stored in 16 bits; Transformers is asked, by the layer's full name."""
        from transformers.quantizers.quantizers_utils import should_convert_module

        return not should_convert_module(module, list(self.left_out))


def few_bits_of(described: Mapping[str, Any]) -> FewBits | None:
    """How a checkpoint stores its weights, by the values of its config.json; None: in 16 bits or more."""
    section = _section(described)
    if not section:
        return None
    four, eight = (bool(section.get(f"load_in_{bits}bit")) for bits in (4, 8))
    method = str(section.get("quant_method") or ("bitsandbytes" if four or eight else "")).rpartition(".")[2].lower()
    if method == "bitsandbytes":
        kind = "8 bits" if eight else "NF4" if section.get("bnb_4bit_quant_type") == "nf4" else "4 bits"
        left_out = section.get("llm_int8_skip_modules")
        patterns = tuple(left_out) if isinstance(left_out, list) else ()
        nested = bool(section.get("bnb_4bit_use_double_quant"))
        return FewBits(f"{kind} of bitsandbytes", not eight, patterns, nested)
    detail = next((section[name] for name in _SAID_IN if isinstance(section.get(name), int | str)), None)
    words = f"{detail} bits" if isinstance(detail, int) else detail
    name = method or ("MLX's form" if "group_size" in section else "a form that it does not name")
    return FewBits(f"{name} ({words})" if words else name, False, ())


def few_bits_in(folder: Path) -> FewBits | None:
    """How the checkpoint in a folder stores its weights; None: in 16 bits or more."""
    return few_bits_of(read_object(folder / "config.json"))


def refuse_few_bits(name: str, described: Mapping[str, Any], folder: Path | None = None, *, setting: str = "") -> None:
    """Raise ConfigError for a base in a form that can neither be trained on nor merged into.

    Args:
        name: a hub id or a folder, as the user named it.
        described: the values of its config.json.
        folder: where it lies, for its model card.
        setting: that names the base.
    """
    stored = few_bits_of(described)
    if folder is not None and stored is None and (folder / "hf_quant_config.json").is_file():
        stored = FewBits("modelopt (hf_quant_config.json)", False, ())
    if stored is not None and not stored.trains:
        raise ConfigError(
            f"{setting}`{name}` is quantised: its weights are stored in {stored.form}. Adapters are trained on, and "
            f"merged into, 16-bit weights or bitsandbytes' 4 bits; name {twin_of(name, folder)} (it is put into NF4 "
            "while loading)"
        )


def require_usable(
    name: str, described: Mapping[str, Any], model: ModelSettings, adapter: AdapterSettings, *, merge_base: str
) -> None:
    """Refuse a base in few bits where the method or the merge needs 16.

    Args:
        merge_base: `export.merge_base`; `auto` where nothing will be merged.

    Raises:
        ConfigError: see `refuse_few_bits`.
        RefusedError: 4-bit weights where the method or `merge_base` needs 16 bits.
    """
    refuse_few_bits(name, described, setting="model.name: ")
    prequantized = few_bits_of(described) is not None
    if prequantized and not adapter.quantized:
        raise RefusedError(
            f"`{name}` exists in 4 bits; method `{adapter.method}` needs a 16-bit base. Name {twin_of(name)}, or take "
            f"method `{'qdora' if adapter.decomposed else 'qlora'}`"
        )
    if prequantized and merge_base == "original16" and not model.base_16bit:
        raise RefusedError(
            f"`{name}` holds 4-bit weights only, and export.merge_base: original16 needs the 16-bit ones. As "
            f"model.base_16bit name {twin_of(name)}; or set export.merge_base: dequant4"
        )


def require_16bit(name: str, folder: Path | None, *, setting: str) -> None:
    """Raise ConfigError for a base's original weights that are not in 16 bits; `folder`: where they lie, if here."""
    stored = few_bits_of(read_model_config(folder / "config.json")) if folder else None
    if stored:
        raise ConfigError(f"{setting}`{name}` is stored in {stored.form}, not in 16 bits; name {twin_of(name, folder)}")


def layers_in_16bit(name: str, described: Mapping[str, Any], modules: Collection[str]) -> tuple[str, ...]:
    """Those of the layers to adapt that a base in 4 bits stores in 16.

    Raises:
        RefusedError: all of them.
    """
    stored = few_bits_of(described)
    kept = tuple(module for module in modules if stored and stored.keeps_16bit(module))
    if kept and len(kept) == len(modules):
        raise RefusedError(
            f"`{name}` is a base in 4 bits that stores all layers to adapt in 16, so its form saves nothing where it "
            f"is trained; adapt others too (adapter.target_modules), or name {twin_of(name)}"
        )
    return kept


def twin_of(name: str, folder: Path | None = None) -> str:
    """The 16-bit model that a base in few bits was made from, in words that follow "name"."""
    of_it = "the 16-bit model that it was made from"
    owner, _, last = name.rstrip("/").rpartition("/")
    match = _ENDING.search(last)
    stem = last[: match.start()] if match else ""
    carded = _carded_base(folder or Path(name), stem)
    known = carded or _PUBLISHED_TWINS.get(name.lower())
    if not known and stem:
        is_hub = "/" not in owner and not Path(name).exists()
        known = f"{owner}/{stem}" if is_hub and owner.lower() in PUBLISHERS else stem
    return f"{of_it}: {known}" if known else of_it


def _section(described: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of config.json that says how weights are stored; a vision model may have it in its text's part."""
    for values in (described, text_section(described)):
        for name in ("quantization_config", "compression_config", "quantization"):
            section = values.get(name)
            if isinstance(section, Mapping) and section:
                return section
    return {}


def _carded_base(folder: Path, stem: str) -> str | None:
    """`base_model` of the model card, where that is the same model in 16 bits and not one that it was tuned from."""
    from huggingface_hub.repocard import metadata_load
    from yaml import YAMLError

    try:
        card = metadata_load(folder / "README.md") if (folder / "README.md").is_file() else None
    except (OSError, ValueError, YAMLError):
        return None
    named = (card or {}).get("base_model")
    named = named[0] if isinstance(named, list) and len(named) == 1 else named
    if not isinstance(named, str):
        return None
    made_from = (card or {}).get("base_model_relation") == "quantized"
    return named if made_from or named.rpartition("/")[2].lower() == stem.lower() else None
