"""The config.json values, as far as memory depends on them, of bases that people tune and that our presets name.

`plan` asks the hub or its cache first; this is for a machine without a network. A hub id is looked up by its last part,
so that mirrors of the same weights are found, but only under owners who publish these weights and not tunes of them.
What a base of another name holds is never guessed from its name.
"""

from __future__ import annotations

from typing import Any


def known_config(name: str) -> dict[str, Any] | None:
    """The values of a hub id, or None for one that is not in the table."""
    owner, _, last = name.lower().rpartition("/")
    if owner not in _OWNERS:
        return None
    for ending in ("-instruct", "-it", "-base"):
        last = last.removesuffix(ending)
    values = _TABLE.get(last.removeprefix("meta-"))
    return dict(values) if values else None


_OWNERS = {
    *("", "unsloth", "meta-llama", "mistralai", "qwen", "google", "microsoft"),
    *("ibm-granite", "huggingfacetb", "tinyllama"),
}


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


_TABLE = {
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
