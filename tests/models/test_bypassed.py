"""Which layers an adapter would not change is read from the model: from its classes' source, and from one forward."""

from __future__ import annotations

from typing import Any

import pytest
from families import family_config

from qdora_fast.models.bypassed import bypassed_layers, called_layers
from qdora_fast.models.model_class import empty_model


def _bypassed(config: Any) -> Any:
    model = empty_model(config)
    return bypassed_layers(model, model.named_modules())


@pytest.mark.parametrize("name", ["granite4-h", "falcon_h1", "bamba", "nemotron_h", "mamba2"])
def test_a_kernel_is_handed_the_weight_of_a_mamba_layers_out_proj(name: str) -> None:
    found = _bypassed(family_config(name))
    assert {layer.rpartition(".")[2] for layer in found.reasons} == {"out_proj"}
    assert all("uses its weight without calling the layer" in reason for reason in found.reasons.values())
    assert not found.multiplied  # the slow path calls it


@pytest.mark.parametrize("name", ["llama", "lfm2", "qwen3_5-text", "gemma4-text", "deepseek_v3", "gpt_oss"])
def test_nothing_is_left_out_without_reason(name: str) -> None:
    """LFM2's convolutions and Qwen3.5's DeltaNet have an out_proj, too, and call it."""
    assert not _bypassed(family_config(name)).reasons


def test_a_branch_that_the_config_rules_out_does_not_count() -> None:
    """BLOOM multiplies by slices of a weight where `slow_but_exact` asks for it."""
    import transformers

    sizes: dict[str, Any] = {"hidden_size": 64, "n_layer": 1, "n_head": 4, "vocab_size": 96}
    assert not _bypassed(transformers.BloomConfig(**sizes)).reasons
    slow = _bypassed(transformers.BloomConfig(**sizes, pretraining_tp=2, slow_but_exact=True))
    assert {layer.rpartition(".")[2] for layer in slow.reasons} == {"dense", "dense_4h_to_h"}


def test_a_weight_that_is_multiplied_by_on_every_processor_is_told_apart() -> None:
    layers = {layer.rpartition(".")[2] for layer in _bypassed(family_config("mamba")).multiplied}
    assert "dt_proj" in layers and "in_proj" not in layers


def test_layers_for_images_are_never_called_by_text() -> None:
    found = _bypassed(family_config("gemma3-vl"))
    assert found.reasons and all("vision" in layer for layer in found.reasons)


def test_a_forward_without_weights_tells_what_is_called_and_leaves_the_model_as_it_was() -> None:
    model = empty_model(family_config("qwen3_moe"))
    before = model.training, model.config._experts_implementation
    called = called_layers(model)
    assert called and "model.layers.1.self_attn.o_proj" in called
    assert (model.training, model.config._experts_implementation) == before
    assert not any(module._forward_pre_hooks for module in model.modules())
