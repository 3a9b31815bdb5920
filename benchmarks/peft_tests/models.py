"""Stand-ins for the hub's small models that PEFT's tests of decoders name: the same architectures, random weights.

A name such as `hf-internal-testing/tiny-random-gpt2` is a path where the tests run, so nothing of theirs is changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdora_fast.system.atomic import staged_folder

_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
_OPT = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("opt", _OPT),
    "peft-internal-testing/opt-125m": ("opt", _OPT),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("gpt2", _GPT),
    "peft-internal-testing/tiny-random-gpt2": ("gpt2", _GPT),
    "hf-internal-testing/tiny-random-gpt2": ("gpt2", _GPT),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": ("gptj", {**_GPT, "rotary_dim": 4}),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("llama", _SMALL),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("mistral", _SMALL),
    "peft-internal-testing/tiny-dummy-qwen2": ("qwen2", {**_SMALL, "tie_word_embeddings": True}),
    "trl-internal-testing/tiny-Qwen3ForCausalLM": ("qwen3", {**_SMALL, "head_dim": 8}),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": ("gemma3_text", {**_SMALL, "head_dim": 8}),
}
"""The hub's name: the type of model and its sizes."""


def write_models(folder: Path) -> None:
    """Write those that are not in `folder` yet, each with a tokenizer of its own."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from qdora_fast.data.demo.base import demo_base

    tokenizer = AutoTokenizer.from_pretrained(demo_base())
    ids = {"bos_token_id": 0, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 1}
    for name, (kind, sizes) in MODELS.items():
        if (folder / name / "config.json").is_file():
            continue
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **{"vocab_size": len(tokenizer), **ids, **sizes})
        with staged_folder(folder / name) as staging:
            AutoModelForCausalLM.from_config(config).save_pretrained(staging)
            tokenizer.save_pretrained(staging)
