"""Small models with an NF4 base and an adapter, and a count of what their forward pass leaves alive for the backward.

Every width is another number, so that a formula with the wrong width in it cannot come out right.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.engine.footprint import persistent
from benchmarks.engine.subjects import quantize

WIDTHS = {
    "vocab_size": 512,
    "hidden_size": 192,
    "intermediate_size": 320,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "max_position_embeddings": 256,
    "use_cache": False,
}
RANK = 16
TOKENS = 96


def config_of(family: str, blocks: int, **changed: Any) -> dict[str, Any]:
    """The config.json of a small model."""
    extra = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} if family == "phi3" else {}
    values = {"model_type": family, "num_hidden_layers": blocks, **WIDTHS, **extra, **changed}
    if family in ("phi3", "qwen2", "granite"):  # their heads share the hidden width
        del values["head_dim"]
    return values


def build(
    family: str, blocks: int, dtype: torch.dtype, *, dora: bool, ours: bool, dropout: float = 0.0, **changed: Any
) -> Any:
    """The model, quantised, with an fp32 adapter, and with our engine in it or without."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from qdora_fast.engine import install

    values = config_of(family, blocks, **changed)
    config = AutoConfig.for_model(**values)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(dtype)
    for parent in list(model.get_decoder().layers.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, quantize_with_bias(child, dtype))
    adapted: Any = get_peft_model(
        model,
        LoraConfig(
            r=RANK,
            lora_alpha=RANK,
            lora_dropout=dropout,
            use_dora=dora,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if ours:
        install(adapted, resident="off")
    model.enable_input_require_grads()  # as Unsloth does for training
    return adapted.train()


def quantize_with_bias(linear: nn.Linear, dtype: torch.dtype) -> nn.Module:
    """The same layer in NF4; a bias stays as it is."""
    four_bit = quantize(linear, dtype, "cpu")
    if linear.bias is not None:
        four_bit.bias = nn.Parameter(linear.bias.data.to(dtype), requires_grad=False)
    return four_bit


def alive_after_forward(model: Any, dtype: torch.dtype, *, tokens: int = TOKENS) -> int:
    """Bytes of the distinct storages that autograd holds after a forward pass, without what the model has anyway."""
    ids = torch.randint(0, 500, (1, tokens), generator=torch.Generator().manual_seed(1))
    known = {tensor.untyped_storage().data_ptr() for tensor in persistent(model)}
    held: weakref.WeakSet[_Held] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Held:
        holder = _Held(tensor)
        held.add(holder)
        return holder

    autocast = torch.autocast("cpu", torch.bfloat16) if dtype == torch.bfloat16 else contextlib.nullcontext()
    with autocast, torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
        states = model.get_base_model().model(input_ids=ids, use_cache=False).last_hidden_state
    storages = {holder.tensor.untyped_storage().data_ptr(): holder.tensor.untyped_storage() for holder in held}
    total = sum(storage.nbytes() for address, storage in storages.items() if address not in known)
    states.float().sum().backward()
    return total


def distinct_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages of some tensors."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def stored_parts(parameter: Tensor) -> Iterator[Tensor]:
    """A parameter's own tensor and, in 4 bits, those of its scales."""

    class Alone:
        def parameters(self) -> list[Tensor]:
            return [parameter]

        def buffers(self) -> list[Tensor]:
            return []

    return persistent(Alone())


class _Held:
    """What autograd keeps in place of a tensor; it dies with the graph."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
