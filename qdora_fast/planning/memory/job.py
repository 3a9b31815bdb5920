"""A run as the numbers that decide its memory: what settings, a base and a machine come to.

Every `auto` is resolved here as loading.py, trainer.py and the engine resolve it when they run. Nothing is counted yet.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from qdora_fast.config import AdapterSettings, EngineSettings, TrainSettings
from qdora_fast.models.targets import Targets, choose_targets
from qdora_fast.planning.cards import GIB
from qdora_fast.planning.memory.architecture import Block, Linear, Sizes

SHORTEST_OFFLOAD = 512
"""Below this `model.max_length` Unsloth quietly uses PyTorch's checkpointing instead of its own."""
FAST_FAMILIES = ("llama", "mistral", "gemma", "gemma2", "qwen2", "qwen3")
"""Architectures that Unsloth runs by hand-written blocks on a GPU; others run transformers' own."""

Checkpointing = Literal["off", "torch", "unsloth"]


@dataclass(frozen=True)
class Group:
    """Blocks that are alike, and of which the same layers are adapted."""

    block: Block
    adapted: tuple[Linear, ...]
    count: int

    @cached_property
    def names(self) -> frozenset[str]:
        """Last parts of the adapted layers' names."""
        return frozenset(linear.name for linear in self.adapted)


@dataclass(frozen=True)
class Job:
    """One run. Bytes per value are called element."""

    sizes: Sizes
    decomposed: bool
    """DoRA: magnitudes are trained, and layers keep their outputs for them."""
    quantized: bool
    rank: int
    targets: str
    """Which layers are adapted, and which are not, in a line for the user."""
    groups: tuple[Group, ...]
    """All blocks."""
    saved_values: int
    """Parameters of modules trained in full."""
    head_trained: bool
    """The output head is among them, or rows of it are trained (`adapter.trainable_tokens`)."""
    tokens_trained: int
    """Tokens whose rows of the embeddings, and of a head of its own, are trained."""
    dropout: bool
    element: int
    """Of activations and of weights that are not in NF4: 2 or 4."""
    checkpointing: Checkpointing
    optimizer: str
    batch_size: int
    gradient_accumulation: int
    length: int
    """Tokens of a row, or of a packed sequence."""
    ours: bool
    """The fused engine runs the adapted layers; else PEFT does."""
    resident_bytes: int
    """Merged weights that must be kept while training; they are given back before the model is asked. With `auto` only
    what is left over is used: 0."""
    on_gpu: bool
    evaluates: bool
    answer_batch: int
    """Held-out rows answered at a time, fewer where memory runs out; 0: none are."""
    answer_tokens: int
    merges: bool

    @property
    def tokens(self) -> int:
        """Of one forward pass."""
        return self.batch_size * self.length

    @property
    def mixed(self) -> bool:
        """16-bit computation around fp32 adapters."""
        return self.element == 2

    @property
    def fast_blocks(self) -> bool:
        """Unsloth's own blocks run; their norms keep their input and no fp32 copy of it."""
        return self.on_gpu and self.sizes.model_type in FAST_FAMILIES

    @property
    def adapted(self) -> tuple[Linear, ...]:
        """Every kind of linear layer that is adapted, once."""
        return tuple(dict.fromkeys(linear for group in self.groups for linear in group.adapted))

    @property
    def effective_batch(self) -> int:
        """Rows per optimizer step."""
        return self.batch_size * self.gradient_accumulation


@dataclass(frozen=True)
class JobSettings:
    """The settings that decide a run's memory, but for the length of its rows."""

    adapter: AdapterSettings
    train: TrainSettings
    engine: EngineSettings
    evaluates: bool = False
    """Rows are held out."""
    answer_batch: int = 0
    """Held-out rows answered at a time; 0: none are."""
    answer_tokens: int = 0
    """Tokens of the longest answer."""
    merges: bool = False
    """The run ends with a merged model."""


def job_of(settings: JobSettings, sizes: Sizes, *, length: int, on_gpu: bool) -> Job:
    """What settings come to on this base.

    Args:
        length: tokens of a row, or of a packed sequence.
        on_gpu: train on a card; else on the CPU, where other defaults hold.

    Raises:
        ConfigError: a target or block that the model does not have, or that cannot be trained; see `choose_targets`.
    """
    adapter, train, engine = settings.adapter, settings.train, settings.engine
    checkpointing = train.gradient_checkpointing
    if checkpointing == "auto":
        checkpointing = "unsloth" if on_gpu else "off"
    if checkpointing == "unsloth" and (length < SHORTEST_OFFLOAD or not on_gpu):
        checkpointing = "torch"
    optimizer: str = train.optimizer
    if optimizer == "auto":
        optimizer = "paged_adamw_8bit" if on_gpu else "adamw"
    precision = train.precision if train.precision != "auto" else "bf16" if on_gpu else "fp32"
    targets = choose_targets(sizes.architecture, adapter)
    return Job(
        sizes=sizes,
        decomposed=adapter.decomposed,
        quantized=adapter.quantized,
        rank=adapter.r,
        targets=targets.summary,
        groups=_groups(targets, sizes),
        saved_values=sizes.vocabulary * sizes.hidden * len(adapter.modules_to_save),
        head_trained="lm_head" in adapter.modules_to_save or bool(adapter.trainable_tokens),
        tokens_trained=len(adapter.trainable_tokens),
        dropout=adapter.dropout > 0,
        element=4 if precision == "fp32" else 2,
        checkpointing=checkpointing,
        optimizer=optimizer,
        batch_size=train.micro_batch,
        gradient_accumulation=train.accumulation,
        length=length,
        ours=engine.impl in ("auto", "triton", "torch"),
        resident_bytes=int(engine.resident * GIB) if isinstance(engine.resident, float | int) else 0,
        on_gpu=on_gpu,
        evaluates=settings.evaluates,
        answer_batch=settings.answer_batch,
        answer_tokens=settings.answer_tokens,
        merges=settings.merges,
    )


def _groups(targets: Targets, sizes: Sizes) -> tuple[Group, ...]:
    chosen = set(targets.modules)
    alike = Counter(
        (block, tuple(each for each in block.linears if f"{sizes.prefix}.{index}.{each.path}" in chosen))
        for index, block in enumerate(sizes.stack)
    )
    return tuple(Group(block, adapted, count) for (block, adapted), count in alike.items())
