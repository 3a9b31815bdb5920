"""What a model is made of, from the values of its config.json: widths, linear layers, and counts of parameters.

Only architectures whose every tensor is known are answered for; the counts are exact. Mixture-of-experts models, models
with a vision or audio tower, and everything unknown are refused: a wrong number would be worse than none.

transformers could tell as much by building the model without memory (targets.py does), but takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qdora_fast.models.model_config import position_limit
from qdora_fast.system.errors import ConfigError


class CannotEstimate(ConfigError):
    """The architecture is not one whose memory we can count; the message says why."""


@dataclass(frozen=True)
class Linear:
    """One linear layer of a decoder block."""

    name: str
    """Last part of its name: q_proj, down_proj, ..."""
    rows: int
    """Output features."""
    columns: int
    """Input features."""
    bias: bool = False

    @property
    def values(self) -> int:
        """Weights, without the bias."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Sizes:
    """A decoder-only language model in numbers. All blocks are alike."""

    model_type: str
    vocabulary: int
    hidden: int
    intermediate: int
    blocks: int
    heads: int
    kv_heads: int
    head_width: int
    tied: bool
    """The output head uses the embeddings' weights."""
    longest: int | None
    """Positions the model was made for; None: not said."""
    linears: tuple[Linear, ...]
    """Of one block, in the model's order."""
    wide_norms: int
    """Norms over the hidden width in one block."""
    head_norms: bool
    """Q and K of every head have norms of their own."""
    softcapped: bool
    """Attention scores are capped, which most attention kernels cannot do."""
    prequantized: bool
    """The checkpoint itself holds 4-bit weights."""

    @property
    def query(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_width

    @property
    def key(self) -> int:
        """Width of all key heads together; that of the values is the same."""
        return self.kv_heads * self.head_width

    @property
    def fused_projections(self) -> bool:
        """Q, K and V come out of one linear layer, gate and up out of another (Phi-3)."""
        return any(linear.name == "qkv_proj" for linear in self.linears)

    @property
    def embedding_values(self) -> int:
        """Parameters of the input embeddings."""
        return self.vocabulary * self.hidden

    @property
    def head_values(self) -> int:
        """Parameters of the output head; 0 where it shares those of the embeddings."""
        return 0 if self.tied else self.vocabulary * self.hidden

    @property
    def norm_values(self) -> int:
        """Parameters of all norms."""
        per_block = self.wide_norms * self.hidden + 2 * self.head_width * self.head_norms
        return self.blocks * per_block + self.hidden

    @property
    def linear_values(self) -> int:
        """Weights of the linear layers of all blocks: what NF4 holds."""
        return self.blocks * sum(linear.values for linear in self.linears)

    @property
    def bias_values(self) -> int:
        """Biases of the linear layers of all blocks."""
        return self.blocks * sum(linear.rows for linear in self.linears if linear.bias)

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.embedding_values + self.head_values + self.norm_values + self.linear_values + self.bias_values


@dataclass(frozen=True)
class _Family:
    """Where an architecture differs from Llama's, and what its config.json may leave out."""

    wide_norms: int = 2
    head_norms: bool = False
    fused: bool = False
    softcapped: bool = False
    qkv_bias: bool | None = None
    """None: as `attention_bias` says, and the output projection with it."""
    mlp_bias: bool = False
    """Read `mlp_bias`."""
    tied: bool = False
    head_width: int | None = None
    """None: hidden / heads."""


_FAMILIES = {
    "llama": _Family(mlp_bias=True),
    "mistral": _Family(qkv_bias=False),
    "qwen2": _Family(qkv_bias=True),
    "qwen3": _Family(head_norms=True, head_width=128),
    "gemma": _Family(tied=True, head_width=256),
    "gemma2": _Family(tied=True, head_width=256, wide_norms=4, softcapped=True),
    "gemma3_text": _Family(tied=True, head_width=256, wide_norms=4, head_norms=True),
    "phi3": _Family(fused=True, qkv_bias=False),
    "granite": _Family(mlp_bias=True),
}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")
_TOWERS = ("vision_config", "audio_config", "vision_tower")


def sizes_of(config: Mapping[str, Any]) -> Sizes:
    """The sizes behind the values of a config.json.

    Raises:
        CannotEstimate: a mixture-of-experts model, one that also sees or hears, or an unknown architecture.
    """
    kind = str(config.get("model_type", ""))
    _refuse(kind, config)
    family = _FAMILIES[kind]
    hidden, heads = _count(config, "hidden_size"), _count(config, "num_attention_heads")
    width = config.get("head_dim") or family.head_width or hidden // heads
    kv_heads = config.get("num_key_value_heads") or heads
    intermediate = _count(config, "intermediate_size")
    tied = config.get("tie_word_embeddings")
    return Sizes(
        model_type=kind,
        vocabulary=_count(config, "vocab_size"),
        hidden=hidden,
        intermediate=intermediate,
        blocks=_count(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=int(kv_heads),
        head_width=int(width),
        tied=family.tied if tied is None else bool(tied),
        longest=position_limit(config),
        linears=_linears(family, config, (hidden, heads * int(width), int(kv_heads) * int(width), intermediate)),
        wide_norms=family.wide_norms,
        head_norms=family.head_norms,
        softcapped=family.softcapped and config.get("attn_logit_softcapping", 50.0) is not None,
        prequantized=config.get("quantization_config") is not None,
    )


def _linears(family: _Family, config: Mapping[str, Any], widths: tuple[int, int, int, int]) -> tuple[Linear, ...]:
    hidden, query, key, intermediate = widths
    if family.fused:
        return (
            Linear("qkv_proj", query + 2 * key, hidden),
            Linear("o_proj", hidden, query),
            Linear("gate_up_proj", 2 * intermediate, hidden),
            Linear("down_proj", hidden, intermediate),
        )
    asked = bool(config.get("attention_bias", False))
    qkv, output = (asked, asked) if family.qkv_bias is None else (family.qkv_bias, False)
    mlp = family.mlp_bias and bool(config.get("mlp_bias", False))
    return (
        Linear("q_proj", query, hidden, qkv),
        Linear("k_proj", key, hidden, qkv),
        Linear("v_proj", key, hidden, qkv),
        Linear("o_proj", hidden, query, output),
        Linear("gate_proj", intermediate, hidden, mlp),
        Linear("up_proj", intermediate, hidden, mlp),
        Linear("down_proj", hidden, intermediate, mlp),
    )


def _refuse(kind: str, config: Mapping[str, Any]) -> None:
    if any(config.get(key) for key in _EXPERTS) or "moe" in kind:
        raise CannotEstimate(f"cannot estimate: `{kind}` is a mixture-of-experts model; only dense models are counted")
    if any(config.get(key) for key in _TOWERS):
        raise CannotEstimate(f"cannot estimate: `{kind}` also has a vision or audio tower; name a text-only checkpoint")
    if kind not in _FAMILIES:
        raise CannotEstimate(
            f"cannot estimate: the architecture `{kind or '(none named)'}` is not one we have counted; "
            f"there are {', '.join(_FAMILIES)}"
        )


def _count(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CannotEstimate(f"cannot estimate: the base's config.json has no usable `{key}` (found {value!r})")
    return value
