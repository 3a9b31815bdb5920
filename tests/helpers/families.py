"""Tiny random checkpoints of today's families, in the form in which they are published, with the demo's tokenizer.

Two blocks of width 128 and NF4 blocks that are whole: half a million to a million parameters, a second each. What a
model says is noise, so only mechanics can be tested with them: names, shapes, what is adapted, merged and proven.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

HIDDEN = 128
IMAGES = ("qwen3_5-vl", "qwen3_vl", "qwen2_5_vl", "gemma3-vl", "gemma4-vl", "mistral3-vl", "smolvlm")
"""Families that are published with a vision tower."""


def save_family(name: str, folder: Path, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Path:
    """A random checkpoint of a family (a key of `FAMILIES`) with the demo's tokenizer; returns the folder."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    torch.manual_seed(seed)
    made = AutoModelForImageTextToText if name in IMAGES else AutoModelForCausalLM
    model = made.from_config(family_config(name)).to(dtype)
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def family_config(name: str) -> Any:
    """The config of a family's tiny checkpoint, of Transformers."""
    return FAMILIES[name]()


@cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    from qdora_fast.data.demo import base

    return AutoTokenizer.from_pretrained(Path(base.__file__).parent / "demo-base")


def _sizes(**changes: Any) -> dict[str, Any]:
    tokenizer = _tokenizer()
    vocabulary = (len(tokenizer) + 63) // 64 * 64
    if "vocab_size_per_layer_input" in changes:
        changes = {**changes, "vocab_size_per_layer_input": vocabulary}
    return {
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **changes,
    }


def _text(model_type: str, **changes: Any) -> Callable[[], Any]:
    def make() -> Any:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        return CONFIG_MAPPING[model_type](**_sizes(**changes))

    return make


def _vision(model_type: str, text: dict[str, Any], vision: dict[str, Any], **changes: Any) -> Callable[[], Any]:
    """`changes` that name a token of images are counted from the end of the vocabulary."""

    def make() -> Any:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        sizes = _sizes(**text)
        tokens = {
            key: sizes["vocab_size"] + value if key.endswith(("_id", "_index")) else value
            for key, value in changes.items()
        }
        return CONFIG_MAPPING[model_type](text_config=sizes, vision_config=vision, **tokens)

    return make


_SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64}
_DELTANET = {
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
}
_GRANITE4 = {
    "shared_intermediate_size": 256,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "tie_word_embeddings": True,
}
_GEMMA4 = {
    "head_dim": 32,
    "global_head_dim": 64,
    "hidden_size_per_layer_input": 64,
    "vocab_size_per_layer_input": 0,  # as the vocabulary
    "num_kv_shared_layers": 0,
    "tie_word_embeddings": True,
    **_SLIDING,
}
_MLA = {
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "num_key_value_heads": 4,
    "head_dim": 32,
}
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]}}
_QWEN_TOWER = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "out_hidden_size": HIDDEN,
    "patch_size": 14,
}
_SIGLIP_TOWER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
_QWEN_TOKENS = {"image_token_id": -3, "video_token_id": -4, "vision_start_token_id": -5, "vision_end_token_id": -6}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_chunk_size": 16}

FAMILIES: dict[str, Callable[[], Any]] = {
    # dense
    "llama": _text("llama"),
    "qwen3": _text("qwen3", head_dim=32),
    "smollm3": _text("smollm3"),
    "olmo2": _text("olmo2"),
    "olmo3": _text("olmo3", **_SLIDING),
    "ministral3": _text("ministral3", head_dim=32),
    "granite": _text("granite", tie_word_embeddings=True),
    "granite4-micro": _text(
        "granitemoehybrid", **_GRANITE4, layer_types=["attention"] * 2, position_embedding_type="rope"
    ),
    "gemma3-1b": _text("gemma3_text", head_dim=32, tie_word_embeddings=True, **_SLIDING),
    "gemma4-text": _text("gemma4_text", **_GEMMA4),
    "glm4": _text("glm4", head_dim=32),
    "exaone4": _text("exaone4", **_SLIDING),
    "cohere2": _text("cohere2", head_dim=32, tie_word_embeddings=True, **_SLIDING),
    "phi4-mini": _text("phi3", tie_word_embeddings=True),
    "apertus": _text("apertus"),
    "seed_oss": _text("seed_oss", head_dim=32),
    "hunyuan": _text("hunyuan_v1_dense", head_dim=32),
    # hybrid blocks
    "qwen3_5-text": _text("qwen3_5_text", **_DELTANET),
    "lfm2": _text(
        "lfm2",
        layer_types=["conv", "full_attention"],
        block_ff_dim=256,
        block_multiple_of=64,
        conv_L_cache=3,
        tie_word_embeddings=True,
    ),
    "granite4-h": _text("granitemoehybrid", **_GRANITE4, **_MAMBA2, layer_types=["mamba", "attention"]),
    "falcon_h1": _text(
        "falcon_h1",
        mamba_d_ssm=128,
        mamba_n_heads=4,
        mamba_d_head=32,
        mamba_d_state=16,
        mamba_n_groups=1,
        mamba_chunk_size=16,
        head_dim=32,
    ),
    "bamba": _text("bamba", **_MAMBA2, mamba_n_groups=1, attn_layer_indices=[1], tie_word_embeddings=True),
    "nemotron_h": _text(
        "nemotron_h",
        layers_block_type=["mamba", "attention", "mlp"],
        num_hidden_layers=3,
        head_dim=32,
        mamba_num_heads=8,
        mamba_head_dim=32,
        ssm_state_size=16,
        n_groups=1,
        chunk_size=16,
        n_routed_experts=0,
    ),
    "mamba2": _text("mamba2", num_heads=8, head_dim=32, state_size=16, n_groups=1, expand=2, chunk_size=16),
    "mamba": _text("mamba", state_size=16, expand=2),
    # mixture of experts
    "qwen3_moe": _text("qwen3_moe", head_dim=32, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64),
    "gpt_oss": _text("gpt_oss", head_dim=32, num_local_experts=4, num_experts_per_tok=2, **_SLIDING),
    "deepseek_v3": _text(
        "deepseek_v3",
        **_MLA,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=64,
        first_k_dense_replace=1,
    ),
    "granite4-h-moe": _text(
        "granitemoehybrid",
        **{**_GRANITE4, **_MAMBA2, "num_local_experts": 4, "num_experts_per_tok": 2},
        layer_types=["mamba", "attention"],
    ),
    # no linear layers
    "gpt2": _text("gpt2", n_embd=HIDDEN, n_layer=2, n_head=4, n_positions=2048),
    # published with a vision tower
    "qwen3_5-vl": _vision("qwen3_5", _DELTANET, {**_QWEN_TOWER, "num_position_embeddings": 64}, **_QWEN_TOKENS),
    "qwen3_vl": _vision(
        "qwen3_vl",
        {"head_dim": 32},
        {**_QWEN_TOWER, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        **_QWEN_TOKENS,
    ),
    "qwen2_5_vl": _vision("qwen2_5_vl", _MROPE, {**_QWEN_TOWER, "fullatt_block_indexes": [1]}, **_QWEN_TOKENS),
    "gemma3-vl": _vision(
        "gemma3",
        {"head_dim": 32, **_SLIDING},
        _SIGLIP_TOWER,
        mm_tokens_per_image=4,
        image_token_index=-3,
        boi_token_index=-4,
        eoi_token_index=-5,
    ),
    "gemma4-vl": _vision(
        "gemma4",
        _GEMMA4,
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "patch_size": 14,
        },
        image_token_id=-3,
        video_token_id=-4,
        audio_token_id=-5,
        boi_token_id=-6,
        eoi_token_id=-7,
    ),
    "mistral3-vl": _vision(
        "mistral3",
        {"model_type": "ministral3", "head_dim": 32},
        {**_SIGLIP_TOWER, "model_type": "pixtral", "head_dim": 32},
        image_token_index=-3,
    ),
    "smolvlm": _vision("smolvlm", {"model_type": "llama"}, _SIGLIP_TOWER, image_token_id=-3, pad_token_id=-7),
}
