"""What a model is made of, in numbers: widths, linear layers block by block, and counts of parameters.

For the architectures of the table below the values of config.json say it all: the counts are exact, and a plan takes a
second. Whatever else Transformers can build is built without weights and read off (built.py), which is as exact and
takes the seconds of an import. What neither knows is refused: a wrong number would be worse than none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qdora_fast.models.model_config import position_limit
from qdora_fast.models.targets import Architecture
from qdora_fast.system.errors import ConfigError

ATTENTION = {"q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "gate_up_proj", "down_proj"}


class CannotEstimate(ConfigError):
    """Not a model whose memory we can count; the message says why."""


@dataclass(frozen=True)
class Linear:
    """One linear layer of a decoder block."""

    path: str
    """Its name within the block: self_attn.q_proj, mlp.down_proj, ..."""
    rows: int
    """Output features."""
    columns: int
    """Input features."""
    bias: bool = False
    dense: bool = False
    """Stays in 16 bits where others are in NF4."""

    @property
    def name(self) -> str:
        """Last part of its name: q_proj, down_proj, ..."""
        return self.path.rpartition(".")[2]

    @property
    def routed(self) -> bool:
        """Belongs to an expert: of a token's layers, only those of some experts run."""
        return "experts" in self.path.split(".")

    @property
    def values(self) -> int:
        """Weights, without the bias."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Block:
    """One decoder block."""

    linears: tuple[Linear, ...]
    """In the model's order."""
    wide_norms: int
    """Norms over the hidden width."""
    head_norms: bool
    """Q and K of every head have norms of their own."""
    other_values: int
    """Parameters that are no linear layer's: norms, convolutions, decays, routers."""
    expert_values: int = 0
    """Parameters of experts that are packed into one tensor, which NF4 leaves in 16 bits."""
    routed_width: int = 0
    """Values that the experts of a token take in and give out."""
    mixer_width: int = 0
    """Values that a recurrence (Mamba, linear attention) or a convolution keeps of a token, in fp32."""
    window: int | None = None
    """Tokens that its attention looks back; None: all."""
    attends: bool = True
    """It keeps keys and values of the tokens it has seen."""

    def rows(self, *names: str) -> int:
        """Outputs of the layers called so, together."""
        return sum(linear.rows for linear in self.linears if linear.name in names and not linear.routed)

    def columns(self, *names: str) -> int:
        """Inputs of the layers called so, together."""
        return sum(linear.columns for linear in self.linears if linear.name in names and not linear.routed)

    @cached_property
    def usual(self) -> frozenset[str]:
        """Names of the layers that make up an attention or an MLP of the kinds whose activations were measured."""
        named = {linear.name for linear in self.linears if not linear.routed}
        attends = {"q_proj", "k_proj", "v_proj"} <= named or {"qkv_proj", "o_proj"} <= named
        feeds = "down_proj" in named and bool(named & {"gate_proj", "up_proj", "gate_up_proj"})
        return frozenset(named & ((ATTENTION if attends else set()) | (MLP if feeds else set())))

    @cached_property
    def query(self) -> int:
        """Width of all query heads together; 0 where the attention is not of the usual layers."""
        if self.usual & {"q_proj", "qkv_proj"}:
            return self.columns("o_proj") or self.rows("q_proj")
        return 0

    @cached_property
    def key(self) -> int:
        """Width of all key heads together; that of the values is the same."""
        if "qkv_proj" in self.usual:
            return (self.rows("qkv_proj") - self.query) // 2
        return self.rows("k_proj") if self.query else 0

    @cached_property
    def intermediate(self) -> int:
        """Width of the MLP; of a block that has none of the usual layers, that of its widest layer."""
        if "down_proj" in self.usual:
            return self.columns("down_proj")
        return max((max(linear.rows, linear.columns) for linear in self.linears), default=0)

    @property
    def linear_values(self) -> int:
        """Weights of its linear layers."""
        return sum(linear.values for linear in self.linears)

    @property
    def bias_values(self) -> int:
        """Biases of its linear layers."""
        return sum(linear.rows for linear in self.linears if linear.bias)


@dataclass(frozen=True)
class Sizes:
    """The language part of a model in numbers, and what else is loaded with it."""

    model_type: str
    vocabulary: int
    hidden: int
    heads: int
    kv_heads: int
    head_width: int
    stack: tuple[Block, ...]
    """The decoder blocks, one by one."""
    embedding_values: int
    """Parameters of the input embeddings."""
    head_values: int
    """Parameters of the output head; 0 where it shares those of the embeddings."""
    outside_values: int
    """Parameters of the decoder outside of blocks, embeddings and head: the last norm, embeddings of each layer."""
    longest: int | None
    """Positions the model was made for; None: not said."""
    softcapped: bool
    """Attention scores are capped, which most attention kernels cannot do."""
    prequantized: bool
    """The checkpoint itself holds weights in few bits."""
    architecture: Architecture
    """Names of the same layers, by which targets are chosen."""
    prefix: str = "model.layers"
    """Full name of the list of blocks."""
    outside: tuple[Linear, ...] = ()
    """Linear layers of the decoder outside of its blocks, by full name."""
    tower_values: int = 0
    """Parameters that are not of the language part: a vision or audio tower, and its projector."""
    tower: str = ""
    """Names of these parts."""
    nested: bool = True
    """The scales of NF4 are quantised as well; not in every checkpoint that holds NF4."""
    measured: bool = True
    """The formulas of activations.py were compared with measurements of this family."""

    @property
    def blocks(self) -> int:
        """How many decoder blocks there are."""
        return len(self.stack)

    @property
    def tied(self) -> bool:
        """The output head uses the embeddings' weights."""
        return self.head_values == 0

    @cached_property
    def alike(self) -> tuple[tuple[Block, int], ...]:
        """Every kind of block, and how many there are."""
        return tuple(Counter(self.stack).items())

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """Every kind of linear layer in the blocks, once."""
        return tuple(dict.fromkeys(linear for block, _ in self.alike for linear in block.linears))

    @property
    def key(self) -> int:
        """Width of all key heads together, by the config."""
        return self.kv_heads * self.head_width

    @cached_property
    def norm_values(self) -> int:
        """Parameters of norms, and of whatever else is neither a linear layer, an embedding nor an expert."""
        return sum(block.other_values * count for block, count in self.alike) + self.outside_values

    @cached_property
    def linear_values(self) -> int:
        """Weights of the linear layers: what NF4 holds."""
        return sum(block.linear_values * count for block, count in self.alike) + sum(
            linear.values for linear in self.outside
        )

    @cached_property
    def bias_values(self) -> int:
        """Biases of the linear layers."""
        outside = sum(linear.rows for linear in self.outside if linear.bias)
        return sum(block.bias_values * count for block, count in self.alike) + outside

    @cached_property
    def expert_values(self) -> int:
        """Parameters of packed experts."""
        return sum(block.expert_values * count for block, count in self.alike)

    @property
    def parameters(self) -> int:
        """All of them."""
        language = self.embedding_values + self.head_values + self.norm_values + self.linear_values + self.bias_values
        return language + self.expert_values + self.tower_values


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


_NEEDED = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers", "vocab_size")
_OTHERWISE = ("auto_map", "text_config", "vision_config", "audio_config", "quantization_config")
"""With one of these the values do not say all that the table needs."""


def table_sizes(config: Mapping[str, Any]) -> Sizes | None:
    """The sizes behind the values of a config.json, if the table knows the architecture and the values say it all.

    Raises:
        CannotEstimate: a value that no model can have.
    """
    family = _FAMILIES.get(str(config.get("model_type", "")))
    for key in _NEEDED:
        if key in config:
            _count(config, key)
    if family is None or not set(_NEEDED) <= set(config) or any(config.get(key) for key in _OTHERWISE):
        return None
    hidden, heads = _count(config, "hidden_size"), _count(config, "num_attention_heads")
    width = int(config.get("head_dim") or family.head_width or hidden // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    vocabulary, blocks = _count(config, "vocab_size"), _count(config, "num_hidden_layers")
    widths = (hidden, heads * width, kv_heads * width, _count(config, "intermediate_size"))
    block = Block(
        linears=_linears(family, config, widths),
        wide_norms=family.wide_norms,
        head_norms=family.head_norms,
        other_values=family.wide_norms * hidden + 2 * width * family.head_norms,
    )
    tied = family.tied if config.get("tie_word_embeddings") is None else bool(config["tie_word_embeddings"])
    return Sizes(
        model_type=str(config["model_type"]),
        vocabulary=vocabulary,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_width=width,
        stack=(block,) * blocks,
        embedding_values=vocabulary * hidden,
        head_values=0 if tied else vocabulary * hidden,
        outside_values=hidden,
        longest=position_limit(config),
        softcapped=family.softcapped and config.get("attn_logit_softcapping", 50.0) is not None,
        prequantized=False,
        architecture=_architecture(str(config["model_type"]), block, blocks, tied=tied),
    )


def _architecture(kind: str, block: Block, blocks: int, *, tied: bool) -> Architecture:
    """The same names that `inspect_architecture` reads off the model."""
    return Architecture(
        model_type=kind,
        blocks=blocks,
        linears=tuple(f"model.layers.{each}.{linear.path}" for each in range(blocks) for linear in block.linears),
        head="lm_head",
        embeddings="model.embed_tokens",
        tied=tied,
        experts=(),
        routed=frozenset(),
        bypassed={},
        multiplied=(),
        other={},
        elsewhere=(),
        beside=(),
        around=(),
        empty=None,
    )


def _linears(family: _Family, config: Mapping[str, Any], widths: tuple[int, int, int, int]) -> tuple[Linear, ...]:
    hidden, query, key, intermediate = widths
    if family.fused:
        return (
            Linear("self_attn.o_proj", hidden, query),
            Linear("self_attn.qkv_proj", query + 2 * key, hidden),
            Linear("mlp.gate_up_proj", 2 * intermediate, hidden),
            Linear("mlp.down_proj", hidden, intermediate),
        )
    asked = bool(config.get("attention_bias", False))
    qkv, output = (asked, asked) if family.qkv_bias is None else (family.qkv_bias, False)
    mlp = family.mlp_bias and bool(config.get("mlp_bias", False))
    return (
        Linear("self_attn.q_proj", query, hidden, qkv),
        Linear("self_attn.k_proj", key, hidden, qkv),
        Linear("self_attn.v_proj", key, hidden, qkv),
        Linear("self_attn.o_proj", hidden, query, output),
        Linear("mlp.gate_proj", intermediate, hidden, mlp),
        Linear("mlp.up_proj", intermediate, hidden, mlp),
        Linear("mlp.down_proj", hidden, intermediate, mlp),
    )


def _count(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CannotEstimate(f"cannot estimate: the base's config.json has no usable `{key}` (found {value!r})")
    return value
