"""One adapted linear layer as PEFT itself merges it: what the proof of an export compares with.

PEFT builds the layer from a weight and the adapter's files, reads the adapter's config in its own way
and merges with its own arithmetic in fp32, so that our merge is not asked to confirm itself. The norm,
B and the magnitude are per output row, hence any rows can be merged alone: memory is bounded by
them. What this does not do: load a model, or round; the caller hands in the weight.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qdora_fast.models.adapter import WEIGHTS_NAME, Adapter


def tokens_merged_by_peft(update: Adapter, name: str, held: Tensor, start: int) -> Tensor:
    """Rows [start, start + n) of embeddings or head with the trained tokens in them, as PEFT merges them.

    Args:
        name: of the tensor that the rows were saved for, as in `Adapter.tokens`.
        held: rows of the base's, [n, hidden], any float type.

    Returns:
        [n, hidden] in fp32.
    """
    from peft import LoraConfig, TrainableTokensConfig
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from safetensors import safe_open

    layer_name = name.removesuffix(".weight")
    indices: Any = LoraConfig.from_pretrained(str(update.folder)).trainable_token_indices
    if isinstance(indices, dict):
        indices = next(ids for end, ids in indices.items() if f".{layer_name}".endswith(f".{end}"))
    places = [place for place, number in enumerate(indices) if start <= number < start + len(held)]
    if not places:
        return held.to(torch.float32)
    embedding = nn.Embedding(*held.shape, _weight=held.to(torch.float32, copy=True))
    layer = TrainableTokensLayer(embedding, "default")
    layer.update_layer("default", TrainableTokensConfig(token_indices=[indices[place] - start for place in places]))
    with safe_open(update.folder / WEIGHTS_NAME, framework="pt") as file, torch.no_grad():
        key = f"base_model.model.{layer_name}.token_adapter.trainable_tokens_delta"
        layer.trainable_tokens_delta["default"].copy_(file.get_tensor(key)[places])
        layer.merge()
    merged: Tensor = embedding.weight.data
    return merged


def merged_by_peft(update: Adapter, layer: str, weight: Tensor, start: int) -> Tensor:
    """Rows [start, start + n) of a layer as PEFT merges them.

    Args:
        update: the adapter; its config and tensors are read from its folder again.
        layer: name in the base (`model.layers.0.mlp.up_proj`).
        weight: rows of the base weight, [n, in], any float type.

    Returns:
        [n, in] in fp32. Rows of zeros stay zero, where PEFT divides by their norm.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from safetensors import safe_open

    root = parent = nn.Module()
    *path, leaf = layer.split(".")
    for part in path:
        child = nn.Module()
        parent.add_module(part, child)
        parent = child
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.to(torch.float32, copy=True), requires_grad=False)
    parent.add_module(leaf, linear)
    config = LoraConfig.from_pretrained(str(update.folder))
    fields = ("modules_to_save", "exclude_modules", "layers_to_transform", "layers_pattern", "trainable_token_indices")
    others = dict.fromkeys(fields)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rank_pattern and alpha_pattern name other layers too
        inject_adapter_in_model(replace(config, target_modules=[layer], **others), root)
    adapted: Any = root.get_submodule(layer)
    rows = slice(start, start + len(weight))
    with safe_open(update.folder / WEIGHTS_NAME, framework="pt") as file, torch.no_grad():
        stem = f"base_model.model.{layer}"
        adapted.lora_A["default"].weight.copy_(file.get_tensor(f"{stem}.lora_A.weight"))
        adapted.lora_B["default"].weight.copy_(file.get_slice(f"{stem}.lora_B.weight")[rows])
        if config.use_dora:
            adapted.lora_magnitude_vector["default"].weight.copy_(file.get_slice(f"{stem}.lora_magnitude_vector")[rows])
        adapted.merge()
    merged: Tensor = adapted.get_base_layer().weight.data
    merged[~weight.any(dim=1) & merged.isnan().all(dim=1)] = 0.0
    return merged
