"""The config.json values, as far as memory depends on them, of bases that people tune and that our presets name.

`plan` asks the hub or its cache first; this is for a machine without a network. A hub id is looked up by its last part,
so that mirrors of the same weights are found, but only under owners who publish these weights and not tunes of them.
What a base of another name holds is never guessed from its name.

The values of the older ones give the parameters that their owners publish, to the last one (the tests). Those of
`_OF_TODAY` are the defaults of the pinned Transformers or from the documents named beside them; none was compared with
the hub, and a plan says so. A model that also sees or hears has its parts, as its config.json has.
"""

from __future__ import annotations

import copy
from typing import Any

from qdora_fast.models.few_bits import PUBLISHERS


def known_config(name: str) -> dict[str, Any] | None:
    """The values of a hub id, or None for one that is not in the table."""
    values = _TABLE.get(_key(name))
    return copy.deepcopy(values) if values else None


def known_source(name: str) -> str:
    """Where the values of a hub id in the table are from, for a plan."""
    compared = "" if _key(name) not in _OF_TODAY else ", not compared with the hub"
    return f"our table of well-known bases{compared}"


def _key(name: str) -> str:
    owner, _, last = name.lower().rpartition("/")
    if owner and owner not in PUBLISHERS:
        return ""
    for ending in ("-bf16", "-instruct", "-it", "-base"):
        last = last.removesuffix(ending)
    return last.removeprefix("meta-")


def known_names() -> tuple[str, ...]:
    """Every name in the table."""
    return tuple(_TABLE)


def _values(
    kind: str, widths: tuple[int, int], blocks: int, heads: tuple[int, int], vocabulary: int, longest: int, **other: Any
) -> dict[str, Any]:
    """widths: hidden and MLP; heads: query, and key and value."""
    return {
        "model_type": kind,
        "hidden_size": widths[0],
        "intermediate_size": widths[1],
        "num_hidden_layers": blocks,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocabulary,
        "max_position_embeddings": longest,
        **other,
    }


def _with_parts(kind: str, text: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """A model that also sees or hears: its text's values, and those of its other parts."""
    return {"model_type": kind, "text_config": text, "tie_word_embeddings": text["tie_word_embeddings"], **parts}


def _qwen3_5(widths: tuple[int, int], tied: bool, vision: tuple[int, int, int]) -> dict[str, Any]:
    """vision: depth, width and MLP width of the tower."""
    text = _values("qwen3_5_text", widths, 32, (16, 4), 248320, 262144, head_dim=256, tie_word_embeddings=tied)
    depth, width, inner = vision
    tower = {"depth": depth, "hidden_size": width, "intermediate_size": inner, "num_heads": 16}
    return _with_parts("qwen3_5", text, vision_config={**tower, "out_hidden_size": widths[0]})


_SIGLIP = {
    **{"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27},
    **{"num_attention_heads": 16, "image_size": 896, "patch_size": 14, "vision_use_head": False},
}
_OF_TODAY = {
    # text: defaults of Transformers 5.17 (qwen3_5), and apxml.com/models/qwen35-4b; the 4B's tower: its sibling's
    "qwen3.5-4b": _qwen3_5((2560, 9216), True, (24, 1024, 4096)),
    "qwen3.5-9b": _qwen3_5((4096, 12288), False, (27, 1152, 4304)),
    # config.json of unsloth/gemma-3-12b-it-GGUF, and the tower of mlx-community/gemma-3-4b-it-bf16
    "gemma-3-12b": _with_parts(
        "gemma3",
        _values(
            "gemma3_text",
            (3840, 15360),
            48,
            (16, 8),
            262208,
            131072,
            head_dim=256,
            sliding_window=1024,
            tie_word_embeddings=True,
        ),
        vision_config=_SIGLIP,
        mm_tokens_per_image=256,
    ),
    # docs.nvidia.com/nemo/megatron-bridge (recipes.gemma.h100.gemma4); tower and ears: defaults of Transformers 5.17
    "gemma-4-e4b": _with_parts(
        "gemma4",
        _values(
            "gemma4_text",
            (2560, 10240),
            42,
            (8, 2),
            262144,
            131072,
            head_dim=256,
            global_head_dim=512,
            hidden_size_per_layer_input=256,
            num_kv_shared_layers=18,
            sliding_window=512,
            tie_word_embeddings=True,
        ),
        vision_config={"model_type": "gemma4_vision"},
        audio_config={"model_type": "gemma4_audio"},
    ),
    # defaults of Transformers 5.17 (ministral3, mistral3), whose documentation names this checkpoint
    "ministral-3-8b-instruct-2512": _with_parts(
        "mistral3",
        _values(
            "ministral3",
            (4096, 14336),
            34,
            (32, 8),
            131072,
            262144,
            head_dim=128,
            tie_word_embeddings=False,
        ),
        vision_config={"model_type": "pixtral"},
    ),
    # defaults of Transformers 5.17, whose documentation names this checkpoint
    "smollm3-3b": _values("smollm3", (2048, 11008), 36, (16, 4), 128256, 32768, tie_word_embeddings=True),
    # the model card's 14B of the Phi-3 architecture, which these values give
    "phi-4": _values("phi3", (5120, 17920), 40, (40, 10), 100352, 16384),
    # text of Mistral-Small-3.1 in the defaults of Transformers 5.17 (mistral3)
    "mistral-small-24b-instruct-2501": _values("mistral", (5120, 32768), 40, (32, 8), 131072, 32768, head_dim=128),
}
_TABLE: dict[str, dict[str, Any]] = {
    **_OF_TODAY,
    "llama-3.1-8b": _values("llama", (4096, 14336), 32, (32, 8), 128256, 131072),
    "llama-3.1-70b": _values("llama", (8192, 28672), 80, (64, 8), 128256, 131072),
    "llama-3.2-1b": _values("llama", (2048, 8192), 16, (32, 8), 128256, 131072, head_dim=64, tie_word_embeddings=True),
    "llama-3.2-3b": _values("llama", (3072, 8192), 28, (24, 8), 128256, 131072, head_dim=128, tie_word_embeddings=True),
    "tinyllama-1.1b-chat-v1.0": _values("llama", (2048, 5632), 22, (32, 4), 32000, 2048),
    "smollm2-135m": _values("llama", (576, 1536), 30, (9, 3), 49152, 8192, tie_word_embeddings=True),
    "smollm2-1.7b": _values("llama", (2048, 8192), 24, (32, 32), 49152, 8192, tie_word_embeddings=True),
    "mistral-7b-v0.3": _values("mistral", (4096, 14336), 32, (32, 8), 32768, 32768, head_dim=128),
    "qwen2.5-0.5b": _values("qwen2", (896, 4864), 24, (14, 2), 151936, 32768, tie_word_embeddings=True),
    "qwen2.5-7b": _values("qwen2", (3584, 18944), 28, (28, 4), 152064, 131072),
    "qwen3-0.6b": _values("qwen3", (1024, 3072), 28, (16, 8), 151936, 40960, head_dim=128, tie_word_embeddings=True),
    "qwen3-8b": _values("qwen3", (4096, 12288), 36, (32, 8), 151936, 40960, head_dim=128),
    "gemma-2b": _values("gemma", (2048, 16384), 18, (8, 1), 256000, 8192, head_dim=256),
    "gemma-2-2b": _values("gemma2", (2304, 9216), 26, (8, 4), 256000, 8192, head_dim=256, attn_logit_softcapping=50.0),
    "gemma-2-9b": _values(
        "gemma2", (3584, 14336), 42, (16, 8), 256000, 8192, head_dim=256, attn_logit_softcapping=50.0
    ),
    "gemma-3-1b": _values("gemma3_text", (1152, 6912), 26, (4, 1), 262144, 32768, head_dim=256),
    "phi-3-mini-4k": _values("phi3", (3072, 8192), 32, (32, 32), 32064, 4096),
    "granite-3.1-2b": _values("granite", (2048, 8192), 40, (32, 8), 49155, 131072, tie_word_embeddings=True),
}
