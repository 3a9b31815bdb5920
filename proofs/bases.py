"""The base models of the harness: the embedded one, tiny random ones of several families, and wide ones.

All have the demo's tokenizer and vocabulary, so that its rows train on each. Random weights are made so that norms
and biases are not all ones and zeros. SmolLM2-135M is a folder that the caller names.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-untied": ("Llama", {"tie_word_embeddings": False}),
    "gqa": ("Llama", {"tie_word_embeddings": False, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 8}),
    "zero-rows": ("Llama", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2",
        {
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "sliding_window": 32,
            "query_pre_attn_scalar": 16,
        },
    ),
}
"""Name -> Transformers' family and what its config changes."""
WIDE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": False,
}
"""One block of an 8B model's widths."""

NAMES = ("demo", "light", *FAMILIES, "wide", "smollm2")


def base_folder(name: str, folder: Path, smollm2: Path | None) -> Path:
    """The folder of a base, made below `folder` if it is not there. Loads the training stack, except for SmolLM2."""
    if name == "smollm2":
        assert smollm2 is not None, "left out where no folder was named"
        return smollm2.resolve()
    from qdora_fast.models.backend import open_backend

    open_backend()  # before anything that imports transformers
    from qdora_fast.data.demo.base import demo_base

    source = demo_base()
    if name in ("demo", "light"):
        return source
    made = folder.resolve() / name
    if not made.is_dir():
        family, changes = ("Llama", WIDE) if name == "wide" else FAMILIES[name]
        after: Mapping[str, Callable[[str, Any], None]] = {"wide": _tame, "zero-rows": _zero_rows}
        _make(made, source, family, changes, after.get(name))
    return made


def _make(folder: Path, source: Path, family: str, changes: Mapping[str, Any], change: Any) -> None:
    import torch
    import transformers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    sizes = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 2048, **ids, **changes}
    config = getattr(transformers, f"{family}Config")(**sizes)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.05)
            elif family != "Llama" or "wide" not in folder.name:
                parameter.mul_(2)  # so that what such a model says depends on its layers
            if change is not None:
                change(name, parameter)
    staging = folder.with_name(f"{folder.name}.incomplete")
    shutil.rmtree(staging, ignore_errors=True)
    model.save_pretrained(staging, max_shard_size="300MB" if folder.name == "wide" else "100KB")
    tokenizer.save_pretrained(staging)
    shutil.copyfile(source / "generation_config.json", staging / "generation_config.json")
    staging.rename(folder)


def _tame(name: str, parameter: Any) -> None:
    """What the layers add to the residual stream becomes small beside the token's own embedding, as in trained models:
    else the 4-bit error alone decides what a random model of this width says."""
    if "embed_tokens" in name:
        parameter.normal_()
    elif name.endswith(("o_proj.weight", "down_proj.weight")):
        parameter.mul_(0.05)


def _zero_rows(name: str, parameter: Any) -> None:
    """Some rows of each linear layer are all zero, as pruning leaves them."""
    if parameter.ndim == 2 and "layers" in name:
        parameter[::13] = 0
